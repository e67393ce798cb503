// Made by advance.sh from advance.cu with sha256 a414a2afb08f1a24cf533d81d251c08a3e6ac81d23519e393914ddfd358e394c
R"ptx(
.version 8.0
.target sm_80
.address_size 64
.extern .func cudaGraphSetConditional
(
	.param .b64 cudaGraphSetConditional_param_0,
	.param .b32 cudaGraphSetConditional_param_1
)
;
.visible .entry stepfuse_advance(
	.param .u64 stepfuse_advance_param_0,
	.param .u64 stepfuse_advance_param_1,
	.param .u64 stepfuse_advance_param_2,
	.param .u64 stepfuse_advance_param_3,
	.param .u32 stepfuse_advance_param_4,
	.param .u32 stepfuse_advance_param_5
)
{
	.reg .pred 	%p<7>;
	.reg .b32 	%r<17>;
	.reg .b64 	%rd<17>;
	ld.param.u64 	%rd5, [stepfuse_advance_param_0];
	ld.param.u64 	%rd8, [stepfuse_advance_param_1];
	ld.param.u64 	%rd6, [stepfuse_advance_param_2];
	ld.param.u64 	%rd7, [stepfuse_advance_param_3];
	ld.param.u32 	%r8, [stepfuse_advance_param_4];
	ld.param.u32 	%r10, [stepfuse_advance_param_5];
	cvta.to.global.u64 	%rd1, %rd8;
	setp.ne.s32 	%p1, %r10, 0;
	mov.u32 	%r15, 0;
	@%p1 bra 	$L__BB0_2;
	ld.global.u32 	%r11, [%rd1];
	add.s32 	%r15, %r11, 1;
$L__BB0_2:
	ld.global.u32 	%r3, [%rd1+4];
	bar.sync 	0;
	setp.lt.s32 	%p2, %r15, %r3;
	@%p2 bra 	$L__BB0_3;
	bra.uni 	$L__BB0_6;
$L__BB0_3:
	mov.u32 	%r16, %tid.x;
	setp.ge.u32 	%p3, %r16, %r8;
	@%p3 bra 	$L__BB0_6;
	mov.u32 	%r5, %ntid.x;
	cvta.to.global.u64 	%rd2, %rd6;
	cvta.to.global.u64 	%rd3, %rd7;
	cvt.u64.u32 	%rd9, %r8;
	cvt.s64.s32 	%rd10, %r15;
	mul.lo.s64 	%rd4, %rd10, %rd9;
$L__BB0_5:
	cvt.u64.u32 	%rd11, %r16;
	add.s64 	%rd12, %rd4, %rd11;
	shl.b64 	%rd13, %rd12, 2;
	add.s64 	%rd14, %rd2, %rd13;
	ld.global.u32 	%r12, [%rd14];
	mul.wide.u32 	%rd15, %r16, 4;
	add.s64 	%rd16, %rd3, %rd15;
	st.global.u32 	[%rd16], %r12;
	add.s32 	%r16, %r16, %r5;
	setp.lt.u32 	%p4, %r16, %r8;
	@%p4 bra 	$L__BB0_5;
$L__BB0_6:
	mov.u32 	%r13, %tid.x;
	setp.ne.s32 	%p5, %r13, 0;
	@%p5 bra 	$L__BB0_8;
	st.global.u32 	[%rd1], %r15;
	selp.u32 	%r14, 1, 0, %p2;
	{ // callseq 0, 0
	.reg .b32 temp_param_reg;
	.param .b64 param0;
	st.param.b64 	[param0+0], %rd5;
	.param .b32 param1;
	st.param.b32 	[param1+0], %r14;
	call.uni 
	cudaGraphSetConditional, 
	(
	param0, 
	param1
	);
	} // callseq 0
$L__BB0_8:
	ret;
}
)ptx"
