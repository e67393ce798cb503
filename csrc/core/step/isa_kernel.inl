// The fused step and the noise of one instruction set. Included inside an anonymous namespace, between the pragmas that
// choose the set, after `constexpr int kLanes`. Everything has internal linkage on purpose: an inline function shared
// with another translation unit might be merged with a copy compiled for a wider set than this machine has.

// Members of class templates are compiled for the baseline, whatever the pragmas around them say, and another set
// passes vectors in other registers: none of them may be called, all have to be inlined.
#ifdef STEPFUSE_VECTOR_TYPES
#define STEPFUSE_INLINED inline __attribute__((always_inline))

// N floats in the compiler's own vector type: SSE2, AVX2, AVX-512 or NEON, as the target says.
template <int N>
struct VectorOf {
  typedef float Type __attribute__((vector_size(N * sizeof(float))));
};

template <class V>
STEPFUSE_INLINED V where_less(V a, V b, V then, V otherwise) {
  return a < b ? then : otherwise;
}
#else
#define STEPFUSE_INLINED inline

// N floats for a compiler without vector types: lane by lane, which rounds alike.
template <int N>
struct VectorOf {
  struct Type {
    float lanes[N];

    template <class Operation>
    static Type each(Operation operation) {
      Type c{};
      for (int k = 0; k < N; ++k) c.lanes[k] = operation(k);
      return c;
    }
    friend Type operator+(const Type& a, float b) {
      return each([&](int k) { return a.lanes[k] + b; });
    }
    friend Type operator+(const Type& a, const Type& b) {
      return each([&](int k) { return a.lanes[k] + b.lanes[k]; });
    }
    friend Type operator-(const Type& a, const Type& b) {
      return each([&](int k) { return a.lanes[k] - b.lanes[k]; });
    }
    friend Type operator*(const Type& a, const Type& b) {
      return each([&](int k) { return a.lanes[k] * b.lanes[k]; });
    }
    friend Type where_less(const Type& a, const Type& b, const Type& then, const Type& otherwise) {
      return each([&](int k) { return a.lanes[k] < b.lanes[k] ? then.lanes[k] : otherwise.lanes[k]; });
    }
  };
};
#endif

template <int N>
struct Lanes {
  using Vector = typename VectorOf<N>::Type;
  static constexpr int kLanes = N;
  Vector v;

  STEPFUSE_INLINED static Lanes load(const float* p) {
    Lanes a;
    std::memcpy(&a.v, p, sizeof a.v);
    return a;
  }
  STEPFUSE_INLINED static void store(float* p, Lanes a) { std::memcpy(p, &a.v, sizeof a.v); }
  template <class T>
  STEPFUSE_INLINED static Lanes load(const T* p) {
    float wide[N];
    for (int k = 0; k < N; ++k) wide[k] = widen(p[k]);
    return load(wide);
  }
  template <class T>
  STEPFUSE_INLINED static void store(T* p, Lanes a) {
    float wide[N];
    store(wide, a);
    for (int k = 0; k < N; ++k) p[k] = narrow<T>(wide[k]);
  }
  STEPFUSE_INLINED static Lanes fill(float value) { return {Vector{} + value}; }
  STEPFUSE_INLINED friend bool any_nan(Lanes a) {  // by value: an accumulator with an address would live in memory
    float lanes[N];
    store(lanes, a);
    bool nan = false;
    for (int k = 0; k < N; ++k) nan |= lanes[k] != lanes[k];
    return nan;
  }
  STEPFUSE_INLINED friend Lanes operator+(Lanes a, Lanes b) { return {a.v + b.v}; }
  STEPFUSE_INLINED friend Lanes operator-(Lanes a, Lanes b) { return {a.v - b.v}; }
  STEPFUSE_INLINED friend Lanes operator*(Lanes a, Lanes b) { return {a.v * b.v}; }
  // Comparisons with a NaN are false, so both hand a NaN in `a` through instead of replacing it by the bound.
  STEPFUSE_INLINED friend Lanes at_least(Lanes a, Lanes bound) { return {where_less(a.v, bound.v, bound.v, a.v)}; }
  STEPFUSE_INLINED friend Lanes at_most(Lanes a, Lanes bound) { return {where_less(bound.v, a.v, bound.v, a.v)}; }
};

template <class V>
struct Coefficients {
  STEPFUSE_INLINED explicit Coefficients(const StepRow& r, float next_scale)
      : g(V::fill(r.g)),
        p_x(V::fill(r.p_x)),
        p_e(V::fill(r.p_e)),
        lo(V::fill(r.lo)),
        hi(V::fill(r.hi)),
        q_x(V::fill(r.q_x)),
        q_d(V::fill(r.q_d)),
        q_e(V::fill(r.q_e)),
        q_h(V::fill(r.q_h)),
        q_z(V::fill(r.q_z)),
        u_x(V::fill(r.u_x)),
        u_d(V::fill(r.u_d)),
        u_e(V::fill(r.u_e)),
        u_h(V::fill(r.u_h)),
        s(V::fill(next_scale)) {}
  V g, p_x, p_e, lo, hi, q_x, q_d, q_e, q_h, q_z, u_x, u_d, u_e, u_h, s;
};

// Of the second line; of one that is not there all are 0.
template <class V>
struct SecondCoefficients {
  STEPFUSE_INLINED explicit SecondCoefficients(const SecondLine& r)
      : q_u(V::fill(r.q_u)),
        q_h2(V::fill(r.q_h2)),
        q_h3(V::fill(r.q_h3)),
        u_u(V::fill(r.u_u)),
        u_z(V::fill(r.u_z)),
        u_h2(V::fill(r.u_h2)),
        u_h3(V::fill(r.u_h3)),
        v_x(V::fill(r.v_x)),
        v_d(V::fill(r.v_d)),
        v_e(V::fill(r.v_e)),
        v_h(V::fill(r.v_h)),
        v_h2(V::fill(r.v_h2)),
        w_h(V::fill(r.w_h)),
        w_h2(V::fill(r.w_h2)),
        w_h3(V::fill(r.w_h3)) {}
  V q_u, q_h2, q_h3, u_u, u_z, u_h2, u_h3, v_x, v_d, v_e, v_h, v_h2, w_h, w_h2, w_h3;
};

enum class Lines { One, OneWithHistory, Two };

// Elements from `begin` on in whole vectors; returns where they end. The two `bad` gather 0 * e and 0 * x': zero as
// long as everything is finite.
template <class V, class T, bool kGuided, Lines kLines, bool kNoise>
std::int64_t run_lanes(const StepRow& row, const StepSpan<T>& span, std::int64_t begin, bool& finite) {
  const StepSpan<T> a = span;  // a copy, in registers: for all the compiler knows, a store may change the caller's
  const SecondLine second = kLines == Lines::Two ? *a.second : SecondLine{};
  const Coefficients<V> c(row, a.next_scale);
  const SecondCoefficients<V> m(second);
  const V zero = V::fill(0.0f);
  // Registers that are not read may hold anything, NaN included.
  const bool reads_history = row.reads_history() || second.reads_history();
  const bool reads_second = second.reads_second(), reads_third = second.reads_third();
  V bad_e = zero, bad_next = zero;
  std::int64_t i = begin;
  for (; i + V::kLanes <= a.n; i += V::kLanes) {
    const V x = V::load(a.x + i);
    V e = V::load(a.eps + i), e_u = e;
    if constexpr (kGuided) {
      e_u = V::load(a.eps_uncond + i);
      e = e_u + c.g * (e - e_u);
    }
    const V d = at_most(at_least(c.p_x * x + c.p_e * e, c.lo), c.hi);
    V next = c.q_x * x + c.q_d * d + c.q_e * e;
    V z = zero;
    if constexpr (kNoise) z = V::load(a.z + i);
    if constexpr (kLines != Lines::One) {
      const V h = reads_history ? V::load(a.h + i) : zero;
      next = next + c.q_h * h;
      V kept = c.u_x * x + c.u_d * d + c.u_e * e + c.u_h * h;
      if constexpr (kLines == Lines::Two) {
        const V h2 = reads_second ? V::load(a.h2 + i) : zero, h3 = reads_third ? V::load(a.h3 + i) : zero;
        next = next + m.q_u * e_u + m.q_h2 * h2 + m.q_h3 * h3;
        kept = kept + m.u_u * e_u + m.u_h2 * h2 + m.u_h3 * h3;
        if constexpr (kNoise) kept = kept + m.u_z * z;
        if (a.h2) V::store(a.h2 + i, m.v_x * x + m.v_d * d + m.v_e * e + m.v_h * h + m.v_h2 * h2);
        if (a.h3) V::store(a.h3 + i, m.w_h * h + m.w_h2 * h2 + m.w_h3 * h3);
      }
      if (kLines == Lines::OneWithHistory || a.h) V::store(a.h + i, kept);
    }
    if constexpr (kNoise) next = next + c.q_z * z;
    bad_e = bad_e + zero * e;
    bad_next = bad_next + zero * next;
    V::store(a.out + i, next);
    if (a.x0) V::store(a.x0 + i, d);
    if (a.next_cond) V::store(a.next_cond + i, c.s * next);
    if (a.next_uncond) V::store(a.next_uncond + i, c.s * next);
  }
  finite = finite && !any_nan(bad_e + bad_next);
  return i;
}

template <class T, bool kGuided, Lines kLines, bool kNoise>
bool run(const StepRow& row, const StepSpan<T>& a) {
  bool finite = true;
  const std::int64_t done = run_lanes<Lanes<kLanes>, T, kGuided, kLines, kNoise>(row, a, 0, finite);
  run_lanes<Lanes<1>, T, kGuided, kLines, kNoise>(row, a, done, finite);
  return finite;
}

template <class T, Lines kLines>
bool run_lines(const StepRow& row, const StepSpan<T>& a) {
  using Run = bool (*)(const StepRow&, const StepSpan<T>&);
  static constexpr Run kRuns[4] = {run<T, false, kLines, false>, run<T, false, kLines, true>,
                                   run<T, true, kLines, false>, run<T, true, kLines, true>};
  return kRuns[(a.eps_uncond ? 2 : 0) + (a.z ? 1 : 0)](row, a);
}

template <class T>
bool dispatch(const StepRow& row, const StepSpan<T>& a) {
  if (a.second) return run_lines<T, Lines::Two>(row, a);
  return a.h ? run_lines<T, Lines::OneWithHistory>(row, a) : run_lines<T, Lines::One>(row, a);
}

// ln u for u in (0, 1), to about one unit in the last place: u = 2^k m with m in [sqrt(1/2), sqrt(2)), then the series
// of 2 artanh((m - 1) / (m + 1)).
inline float log_unit(float u) {
  const std::uint32_t bits = bits_of(u) - 0x3F3504F3u;  // sqrt(1/2): the exponent field becomes k, biased
  const auto k = static_cast<float>(static_cast<std::int32_t>(bits) >> 23);
  const float m = float_of((bits & 0x007FFFFFu) + 0x3F3504F3u);
  const float s = (m - 1.0f) / (m + 1.0f), s2 = s * s;
  const float tail = s2 * (0.333333333f + s2 * (0.2f + s2 * (0.142857143f + s2 * 0.111111111f)));
  return k * 0.693145752f + (2.0f * s + (2.0f * s * tail + k * 1.42860677e-6f));
}

// (cos, sin) of 2 pi u for u in (0, 1): to the nearest quarter turn exactly, then Taylor within an eighth of a turn.
inline void cos_sin_turn(float u, float& cosine, float& sine) {
  const auto quarter = static_cast<std::int32_t>(4.0f * u + 0.5f);
  const float a = 6.28318531f * (u - 0.25f * static_cast<float>(quarter)), a2 = a * a;
  const float s = a + a * a2 * (-1.66666667e-1f + a2 * (8.33333333e-3f + a2 * (-1.98412698e-4f + a2 * 2.75573192e-6f)));
  const float c =
      1.0f +
      a2 * (-0.5f + a2 * (4.16666667e-2f + a2 * (-1.38888889e-3f + a2 * (2.48015873e-5f + a2 * -2.75573192e-7f))));
  const bool odd = quarter & 1;
  const float along = odd ? s : c, across = odd ? c : s;
  cosine = ((quarter + 1) & 2) ? -along : along;
  sine = (quarter & 2) ? -across : across;
}

// Sixteen Philox blocks side by side: plain loops over the lanes, which the compiler turns into vectors of the set.
constexpr int kBlocks = 16;

inline void normal_blocks(std::uint64_t seed, std::uint32_t step, std::uint32_t stream, std::uint32_t first,
                          float (&out)[4][kBlocks]) {
  std::uint32_t c[4][kBlocks];
  for (int i = 0; i < kBlocks; ++i)
    c[0][i] = first + static_cast<std::uint32_t>(i), c[1][i] = step, c[2][i] = stream, c[3][i] = 0;
  auto k0 = static_cast<std::uint32_t>(seed), k1 = static_cast<std::uint32_t>(seed >> 32);
  for (int round = 0; round < kPhiloxRounds; ++round) {
    for (int i = 0; i < kBlocks; ++i) {
      const std::uint64_t p0 = std::uint64_t{kPhiloxM0} * c[0][i], p1 = std::uint64_t{kPhiloxM1} * c[2][i];
      c[0][i] = static_cast<std::uint32_t>(p1 >> 32) ^ c[1][i] ^ k0;
      c[1][i] = static_cast<std::uint32_t>(p1);
      c[2][i] = static_cast<std::uint32_t>(p0 >> 32) ^ c[3][i] ^ k1;
      c[3][i] = static_cast<std::uint32_t>(p0);
    }
    k0 += kPhiloxW0;
    k1 += kPhiloxW1;
  }
  for (int pair = 0; pair < 4; pair += 2) {
    for (int i = 0; i < kBlocks; ++i) {
      // 23 random bits and a half: exact in float32, never 0 and never 1.
      const float u = (static_cast<float>(c[pair][i] >> 9) + 0.5f) * 0x1p-23f;
      const float turn = (static_cast<float>(c[pair + 1][i] >> 9) + 0.5f) * 0x1p-23f;
      const float radius = std::sqrt(-2.0f * log_unit(u));
      float cosine, sine;
      cos_sin_turn(turn, cosine, sine);
      out[pair][i] = radius * cosine;
      out[pair + 1][i] = radius * sine;
    }
  }
}

inline void normal_quads(std::uint64_t seed, std::uint32_t step, std::uint32_t stream, std::int64_t quad,
                         std::int64_t quads, float* out) {
  float block[4][kBlocks];
  for (std::int64_t done = 0; done < quads; done += kBlocks) {
    normal_blocks(seed, step, stream, static_cast<std::uint32_t>(quad + done), block);
    const int count = static_cast<int>(quads - done < kBlocks ? quads - done : kBlocks);
    for (int i = 0; i < count; ++i)
      for (int k = 0; k < 4; ++k) out[4 * (done + i) + k] = block[k][i];
  }
}
