#include "renorm.h"

#include <cmath>

namespace stepfuse {

void renorm(const Renorm& by, float g, float* eps, float* eps_uncond) {
  const std::int64_t width = by.width, plane = by.height * width;
  const auto each = [&](std::int64_t corner, auto&& visit) {
    for (std::int64_t c = 0; c < by.channels; ++c)
      for (std::int64_t row = 0; row < by.patch; ++row)
        for (std::int64_t column = 0; column < by.patch; ++column) visit(corner + c * plane + row * width + column);
  };
  const auto blended = [&](std::int64_t k) { return eps_uncond[k] + g * (eps[k] - eps_uncond[k]); };
  for (std::int64_t top = 0; top < by.height; top += by.patch) {
    for (std::int64_t left = 0; left < width; left += by.patch) {
      double of_cond = 0, of_blend = 0;
      const std::int64_t corner = top * width + left;
      each(corner, [&](std::int64_t k) {
        const double cond = eps[k], blend = blended(k);
        of_cond += cond * cond;
        of_blend += blend * blend;
      });
      const double scale = of_blend > 0 ? std::sqrt(of_cond / of_blend) : 1;
      each(corner, [&](std::int64_t k) { eps[k] = eps_uncond[k] = static_cast<float>(scale * blended(k)); });
    }
  }
}

}  // namespace stepfuse
