#include "lowrank_core/fft.h"

#include <complex>
#include <vector>

#include "lowrank_core/angle.h"

namespace lowrank::fft {
namespace {

using Complex = std::complex<double>;

Complex root(int64_t t, int64_t n) {
  const CirclePoint point = circle_point(-t, n);
  return {point.cos, point.sin};
}

int64_t smallest_prime(int64_t n) {
  for (int64_t p = 2; p * p <= n; ++p) {
    if (n % p == 0) return p;
  }
  return n;
}

// Fours first, while the blocks are large; what is left over works within a cache line or two.
std::vector<int64_t> radices(int64_t n) {
  std::vector<int64_t> found;
  for (; n % 4 == 0; n /= 4) found.push_back(4);
  while (n > 1) {
    found.push_back(smallest_prime(n));
    n /= found.back();
  }
  return found;
}

// y_k = sum of x_{j step} exp(-2 pi i jk / n) in float64, for what a plan needs once.
void transform(const Complex* x, int64_t step, Complex* y, int64_t n) {
  if (n == 1) {
    y[0] = x[0];
    return;
  }
  const int64_t p = smallest_prime(n), m = n / p;
  for (int64_t q = 0; q < p; ++q) transform(x + q * step, step * p, y + q * m, m);
  std::vector<Complex> part(static_cast<size_t>(p));
  for (int64_t k = 0; k < m; ++k) {
    for (int64_t q = 0; q < p; ++q) part[size_t(q)] = y[q * m + k] * root(q * k, n);
    for (int64_t s = 0; s < p; ++s) {
      Complex sum = 0;
      for (int64_t q = 0; q < p; ++q) sum += part[size_t(q)] * root(q * s, p);
      y[s * m + k] = sum;
    }
  }
}

// Where frequency k of a transform of `length` points stands after the passes from `stage` on.
int64_t place_of(const std::vector<int64_t>& radix, size_t stage, int64_t length, int64_t k) {
  if (stage == radix.size()) return 0;
  const int64_t sub = length / radix[stage];
  return k % radix[stage] * sub + place_of(radix, stage + 1, sub, k / radix[stage]);
}

// Writes complex numbers one after another, each rounded once.
template <class T>
class Writer {
 public:
  explicit Writer(T* to) : to_(to) {}

  const T* here() const { return to_; }
  void put(Complex z) {
    *to_++ = T(z.real());
    *to_++ = T(z.imag());
  }

 private:
  T* to_;
};

int64_t numbers_needed(const std::vector<int64_t>& radix, int64_t length, int64_t chirps) {
  int64_t count = 2 * chirps + (chirps > 0 ? 2 * length : 0);
  for (const int64_t r : radix) {
    count += 2 * (length / r * (r - 1) + r);
    length /= r;
  }
  return count;
}

template <class T>
void add_stages(Plan<T>& plan, const std::vector<int64_t>& radix, Writer<T>& writer) {
  int64_t length = plan.length;
  for (const int64_t r : radix) {
    const int64_t sub = length / r;
    Stage<T>& stage = plan.stage[plan.stages++] = {r, sub, writer.here(), nullptr};
    for (int64_t j = 0; j < sub; ++j) {
      for (int64_t p = 1; p < r; ++p) writer.put(root(j * p, length));
    }
    stage.roots = writer.here();
    for (int64_t t = 0; t < r; ++t) writer.put(root(t, r));
    length = sub;
  }
}

// X_k = w_k sum over j of (x_j w_j) conj(w_{k - j}), w_j = exp(-pi i j² / n): a convolution, cyclic in `length` points.
template <class T>
void add_chirp(Plan<T>& plan, const std::vector<int64_t>& radix, Writer<T>& writer) {
  const int64_t n = plan.n, m = plan.length;
  plan.chirp = writer.here();
  std::vector<Complex> kernel(static_cast<size_t>(m)), spectrum(static_cast<size_t>(m));
  for (int64_t j = 0; j < n; ++j) {
    const Complex w = root(j * j % (2 * n), 2 * n);
    writer.put(w);
    kernel[size_t(j)] = kernel[size_t((m - j) % m)] = std::conj(w);
  }
  transform(kernel.data(), 1, spectrum.data(), m);
  for (int64_t k = 0; k < m; ++k) kernel[size_t(place_of(radix, 0, m, k))] = spectrum[size_t(k)] / double(m);
  plan.kernel = writer.here();
  for (const Complex& z : kernel) writer.put(z);
}

}  // namespace

int64_t largest_prime(int64_t n) {
  int64_t largest = 1;
  while (n > 1) {
    largest = smallest_prime(n);
    n /= largest;
  }
  return largest;
}

int64_t smooth_length(int64_t n) {
  while (n > 1 && largest_prime(n) > 5) ++n;
  return n;
}

template <class T>
Plan<T> make_plan(int64_t n) {
  LRC_CHECK(n >= 1 && n < int64_t(1) << 29, "fft: the length must be >= 1 and below 2^29, got " + std::to_string(n));
  Plan<T> plan;
  plan.n = n;
  plan.chirped = largest_prime(n) > kLargestRadix;
  plan.length = plan.chirped ? smooth_length(2 * n - 1) : n;
  const std::vector<int64_t> radix = radices(plan.length);
  plan.numbers = Buffer<T>(numbers_needed(radix, plan.length, plan.chirped ? n : 0));
  plan.places = Buffer<int32_t>(n);
  Writer<T> writer(plan.numbers.data());
  add_stages(plan, radix, writer);
  if (plan.chirped) add_chirp(plan, radix, writer);
  for (int64_t k = 0; k < n; ++k) plan.places[k] = int32_t(plan.chirped ? k : place_of(radix, 0, n, k));
  plan.place = plan.places.data();
  return plan;
}

template Plan<float> make_plan(int64_t);
template Plan<double> make_plan(int64_t);

}  // namespace lowrank::fft
