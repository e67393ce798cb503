// Storage types of the fused step. Arithmetic is always float32; these only say how a value is kept in memory.
#pragma once

#include <cstdint>
#include <cstring>

namespace stepfuse {

struct Half {  // IEEE 754 binary16
  std::uint16_t bits;
};

struct BFloat16 {  // the upper half of a binary32
  std::uint16_t bits;
};

inline std::uint32_t bits_of(float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

inline float float_of(std::uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline float widen(float value) { return value; }

inline float widen(BFloat16 value) { return float_of(static_cast<std::uint32_t>(value.bits) << 16); }

inline float widen(Half value) {
  const std::uint32_t sign = static_cast<std::uint32_t>(value.bits & 0x8000u) << 16;
  const std::uint32_t magnitude = value.bits & 0x7FFFu;
  if (magnitude >= 0x7C00u) return float_of(sign | 0x7F800000u | (magnitude & 0x3FFu) << 13);
  // Scaling by 2^112 re-biases the exponent and normalises subnormals in one exact product.
  return float_of(sign | bits_of(float_of(magnitude << 13) * 0x1p112f));
}

template <class T>
T narrow(float value);

template <>
inline float narrow<float>(float value) {
  return value;
}

template <>
inline BFloat16 narrow<BFloat16>(float value) {
  const std::uint32_t bits = bits_of(value);
  if (value != value) return {static_cast<std::uint16_t>(bits >> 16 | 0x40u)};
  return {static_cast<std::uint16_t>((bits + 0x7FFFu + (bits >> 16 & 1u)) >> 16)};  // to nearest, ties to even
}

template <>
inline Half narrow<Half>(float value) {
  const std::uint32_t bits = bits_of(value);
  const std::uint32_t sign = bits >> 16 & 0x8000u;
  const std::uint32_t magnitude = bits & 0x7FFFFFFFu;
  if (magnitude > 0x7F800000u) return {static_cast<std::uint16_t>(sign | 0x7E00u)};
  if (magnitude >= 0x477FF000u) return {static_cast<std::uint16_t>(sign | 0x7C00u)};
  if (magnitude < 0x38800000u) {  // subnormal: let one float addition round at the right bit
    const float rounded = float_of(magnitude) + 0.5f;
    return {static_cast<std::uint16_t>(sign | (bits_of(rounded) - 0x3F000000u))};
  }
  const std::uint32_t rebiased = magnitude - 0x38000000u;
  return {static_cast<std::uint16_t>(sign | (rebiased + 0xFFFu + (rebiased >> 13 & 1u)) >> 13)};
}

}  // namespace stepfuse
