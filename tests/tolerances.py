"""How near is near enough, each bound with its reason."""

#: A trajectory of a one-step method against diffusers, relative: float32 coefficients and states over a whole run.
ONE_STEP = 1e-5

#: The same for methods that carry a history, which feed rounding back.
MULTISTEP = 5e-5

#: The fused step against float64, relative to the largest term: float32 has 24 bits, a step rounds about ten times.
STEP_FLOAT32 = 2e-6

#: The same with float16 storage: loads are exact, the one rounding at the store, to 11 bits, is off by 2^-11 at most.
STEP_FLOAT16 = 2**-11 * 1.01

#: And with bfloat16 storage, 8 bits.
STEP_BFLOAT16 = 2**-8 * 1.01

#: Noise against its float64 oracle, absolute: rounding of log, root, sine and cosine at values up to 5.8.
NOISE = 2e-6

#: A sample in a mixed batch against the same alone: ONNX Runtime blocks matrix products by the batch's size.
BATCH_ONNXRUNTIME = 1e-5

#: A prediction of OpenVINO in float32 against ONNX Runtime's, relative to the largest, and what a few steps make of it:
#: the same products summed in another order.
OPENVINO = 1e-5

#: A prediction in bfloat16 against float32, relative norm: 8 bits a factor; the embedded model was at 0.9 %.
OPENVINO_BFLOAT16 = 3e-2

#: Schedules against diffusers' float32: betas relative, signal amplitudes absolute; a thousand roundings at random.
SCHEDULE = 1e-6

#: Three steps against exact arithmetic: float32 coefficients, and one digit lost where x and the noise nearly cancel.
BY_HAND = 1e-6

#: The embedded model's image against its network stepped in float64, relative: guidance and eight steps of a network
#: amplify what float32 states and inputs round.
EMBEDDED_MODEL = 2e-5

#: Noise found again by inversion with the fixed point reached, absolute: a hundred steps each way in float32.
INVERSE = 2e-5

#: A row with a whole sample's deviation or quantile folded in, against float64, relative: the blend is rounded to
#: float32 first, and of two values that nearly cancel the deviation keeps less than they had.
ADAPTED_ROW = 1e-6

#: The same against the core: both add up the same float32 values in float64, in another order, and round once.
ADAPTED_ROW_ORDER = 2**-23

#: Tiles against diffusers', absolute, in [-1, 1]: the same float32 blends of the same tiles, in the same order.
TILES = 2e-6

#: A weight in int8 against itself, in steps of its channel: rounded once, and the step is itself rounded to float32.
INT8_WEIGHT = 0.501

#: The embedded model's images in int8 against float32, root mean square as a share of the data range: four steps with
#: guidance 3 were at 0.027 (static) and 0.003 (dynamic), and one scale of an outer block too small by four gives
#: 0.07 to 0.3.
INT8_IMAGE = 0.04

#: Its prediction in int8 at the noisiest timestep, relative: there the network returns nearly its input.
INT8_NOISY_PREDICTION = 1e-3

#: Images of a diffusers pipeline with our scheduler in the place of its own, in [0, 1]: both step in float32, and the
#: network and the decoder amplify what they round differently.
SCHEDULER_IMAGES = 1e-4

#: A network with a LoRA fused against PEFT, which adds it to the activations, relative to the largest output: float32.
LORA = 1e-4

#: Samples of an exported network against the torch module's own, relative to the largest: two libraries add up the same
#: products in another order, and twenty guided steps amplify that.
EXPORTED_TRAJECTORY = 1e-4

#: A float16 graph's error in units of torch's own under autocast, which rounds in other places.
FLOAT16_AGAINST_TORCH = 2.0

#: Images in [0, 1] of a compiled pipeline against diffusers', absolute, and latents, relative: a few steps of networks
#: of random weights, which amplify what diffusers' float32 coefficients round.
COMPILED = 2e-5

#: The same with the network in bfloat16, whose 8 bits turn a state's last bit into one of the prediction's.
COMPILED_BFLOAT16 = 1e-2

#: A float16 graph of a few operators against float32, relative to the largest: each rounds to 2^-11.
FLOAT16_OPERATOR = 4e-3

#: Pictures of an exported pipeline against diffusers', in [0, 1], where 1e-3 is promised: two libraries' float32
#: through a whole run and decoder were 2e-6 apart.
PICTURE = 2e-5

#: Embeddings of exported text encoders against diffusers', absolute: values up to 5 through a few layers in float32.
EMBEDDING = 2e-5

#: A part of a pipeline against the pipeline's own call of it, absolute: the same torch modules, in other batches.
SAME_MODULE = 1e-6

#: Latents of a float16 network against float32, relative to the largest: five guided steps that each round to 2^-11
#: were 6e-4 apart.
HALF_LATENTS = 5e-3

#: Images of a float32 network on a GPU against the engine's on the CPU, relative to the largest: the step is the same
#: to the bit, and the network's sums of products are in another order, which twenty guided steps amplify.
GPU_IMAGES = 1e-4

#: Samples with rescaled guidance of a trajectory against the engine's, relative to the largest: a row may differ by
#: ADAPTED_ROW_ORDER, which a few guided steps amplify.
ADAPTED_SAMPLES = 1e-5

#: Images of a network in half precision, of the loop against a trajectory's, relative to the largest: a row's products
#: may be summed in another order at another place of a forward, and bfloat16 rounds to 2^-9.
GPU_HALF_IMAGES = 5e-2

#: Images of a network that TensorRT may multiply in TF32, relative to the largest: a factor is rounded to 2^-11, which
#: eight guided steps amplify.
GPU_TF32_IMAGES = 2e-2

#: Ends of a bootstrap's interval of medians, relative: two runs of 2,000 and of 20,000 draws from other random numbers
#: end at neighbouring values of samples that are a few percent apart.
BOOTSTRAP = 5e-2
