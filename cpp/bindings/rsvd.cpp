#include "lowrank_core/rsvd.h"

#include <pybind11/stl.h>

#include "expect.h"
#include "kernel.h"
#include "precision.h"
#include "register.h"

namespace py = pybind11;

namespace lowrank {
namespace {

using rsvd::Params;

constexpr Expect check{"rsvd"};

void expect(const View& view, const char* argument, const View& like, int64_t rows, int64_t cols, DType dtype) {
  check(view.rank == like.rank && view.batch() == like.batch() && view.dtype == dtype && rows_of(view) == rows &&
            cols_of(view) == cols,
        argument);
}

DType work_type(const View& a) { return a.dtype == DType::kFloat64 ? DType::kFloat64 : DType::kFloat32; }

struct Shape {
  int64_t m, n;
};

Shape matrix_shape(const View& a) {
  LRC_CHECK(a.rank >= 2, "rsvd: `a` must have at least 2 dimensions");
  return {rows_of(a), cols_of(a)};
}

std::optional<View> checked_basis(const std::optional<ReadArray>& basis, const View& a, int64_t m, int64_t niter) {
  if (!basis) return std::nullopt;
  expect(basis->view, "basis", a, m, matrix_shape(basis->view).n, basis->view.dtype);
  LRC_CHECK(niter >= 1, "rsvd: `niter` must be >= 1 with `basis`, got 0; the basis alone has not seen the matrix");
  return basis->view;
}

void expect_values(const View& s, const View& a, int64_t rank) {
  check(s.rank == a.rank - 1 && cols_of(s) == rank && s.dtype == work_type(a) && s.size() == a.batch() * rank, "s");
}

Params params(int64_t oversample, int64_t niter, uint64_t seed, const std::string& precision) {
  LRC_CHECK(oversample >= 0 && niter >= 0, "rsvd: `oversample` and `niter` must be >= 0");
  return {oversample, niter, seed, math_of(precision)};
}

int64_t checked_rank(const View& u, int64_t m, int64_t n) {
  const int64_t rank = cols_of(u);
  LRC_CHECK(rank >= 0 && rank <= std::min(m, n), "rsvd: `rank` must be <= min(m, n)");
  return rank;
}

void bind_rsvd(const WriteArray& u, const WriteArray& s, const WriteArray& vh, const ReadArray& a, int64_t oversample,
               int64_t niter, const std::optional<ReadArray>& basis, uint64_t seed, const std::string& precision) {
  const auto [m, n] = matrix_shape(a.view);
  const int64_t rank = checked_rank(u.view, m, n);
  expect(u.view, "u", a.view, m, rank, work_type(a.view));
  expect(vh.view, "vh", a.view, rank, n, work_type(a.view));
  expect_values(s.view, a.view, rank);
  rsvd::rsvd_cpu(u.view, s.view, vh.view, a.view, checked_basis(basis, a.view, m, niter),
                 params(oversample, niter, seed, precision));
}

using OptionalArray = std::optional<ReadArray>;

// Lists of equal length; each entry may be a batch.
void bind_range_finder(const std::vector<WriteArray>& q, const std::vector<ReadArray>& a, int64_t oversample,
                       int64_t niter, const std::vector<OptionalArray>& basis, const std::vector<uint64_t>& seed,
                       const std::string& precision) {
  LRC_CHECK(q.size() == a.size() && basis.size() == a.size() && seed.size() == a.size(),
            "range_finder: the lists must have the same length");
  std::vector<rsvd::RangeJob> jobs;
  for (size_t i = 0; i < a.size(); ++i) {
    const auto [m, n] = matrix_shape(a[i].view);
    expect(q[i].view, "q", a[i].view, m, checked_rank(q[i].view, m, n), work_type(a[i].view));
    const std::optional<View> start = checked_basis(basis[i], a[i].view, m, niter);
    for (int64_t k = 0; k < a[i].view.batch(); ++k) {
      const auto known = start ? std::optional<Matrix>(start->matrix(k)) : std::nullopt;
      jobs.push_back({q[i].view.matrix(k), a[i].view.matrix(k), known, seed[i]});
    }
  }
  rsvd::range_finder_cpu(jobs, params(oversample, niter, 0, precision));
}

void bind_factored_svd(const WriteArray& u, const WriteArray& s, const WriteArray& vh, const ReadArray& b,
                       const ReadArray& a) {
  const auto [k, n] = matrix_shape(a.view);
  const auto [m, inner] = matrix_shape(b.view);
  LRC_CHECK(inner == k, "factored_svd: `b` [m, k] and `a` [k, n] must share k");
  const int64_t rank = checked_rank(u.view, m, n);
  LRC_CHECK(rank <= k, "factored_svd: `rank` must be <= k");
  expect(b.view, "b", a.view, m, k, a.view.dtype);
  expect(u.view, "u", a.view, m, rank, work_type(a.view));
  expect(vh.view, "vh", a.view, rank, n, work_type(a.view));
  expect_values(s.view, a.view, rank);
  rsvd::factored_svd_cpu(u.view, s.view, vh.view, b.view, a.view);
}

OrthMethod method_of(const std::string& method) {
  if (method == "auto") return OrthMethod::kAuto;
  if (method == "cholqr2") return OrthMethod::kCholQR2;
  if (method == "householder") return OrthMethod::kHouseholder;
  LRC_CHECK(
      method == "newton_schulz",
      "orthonormalize: `method` must be 'auto', 'cholqr2', 'householder' or 'newton_schulz', got '" + method + "'");
  return OrthMethod::kNewtonSchulz;
}

bool bind_orthonormalize(const WriteArray& q, const ReadArray& y, const std::string& method) {
  const auto [m, n] = matrix_shape(y.view);
  LRC_CHECK(m >= n, "orthonormalize: `y` must have at least as many rows as columns");
  expect(q.view, "q", y.view, m, n, work_type(y.view));
  return rsvd::orthonormalize_cpu(q.view, y.view, method_of(method));
}

using RankFound = std::pair<int64_t, double>;

// Lists of equal length.
std::vector<RankFound> bind_qb(const std::vector<WriteArray>& q, const std::vector<WriteArray>& b,
                               const std::vector<ReadArray>& a, double energy, int64_t block, int64_t niter,
                               const std::vector<uint64_t>& seed) {
  LRC_CHECK(q.size() == a.size() && b.size() == a.size() && seed.size() == a.size(),
            "qb: the lists must have the same length");
  LRC_CHECK(block >= 1 && niter >= 0, "qb: `block` must be >= 1 and `niter` >= 0");
  std::vector<rsvd::QbJob> jobs;
  for (size_t i = 0; i < a.size(); ++i) {
    const View& from = a[i].view;
    const auto [m, n] = matrix_shape(from);
    LRC_CHECK(from.rank == 2, "qb: `a` must be one matrix");
    const int64_t cap = checked_rank(q[i].view, m, n);
    expect(q[i].view, "q", from, m, cap, work_type(from));
    expect(b[i].view, "b", from, cap, n, work_type(from));
    jobs.push_back({q[i].view.matrix(), b[i].view.matrix(), from.matrix(), seed[i]});
  }
  std::vector<RankFound> found;
  for (const rsvd::QbResult& result : rsvd::qb_cpu(jobs, energy, block, niter))
    found.emplace_back(result.rank, result.captured);
  return found;
}

void bind_sketch(const WriteArray& out, uint64_t seed, uint32_t step, uintptr_t stream) {
  if (!out.view.on_cuda) return rsvd::sketch_cpu(out.view, seed, step);
  rsvd::sketch_cuda(out.view, seed, step, reinterpret_cast<void*>(stream));
}

}  // namespace

void register_rsvd(py::module_& module) {
  using namespace py::literals;
  kernel(module, "rsvd", &bind_rsvd, "u"_a, "s"_a, "vh"_a, "a"_a, py::kw_only(), "oversample"_a = 10, "niter"_a = 2,
         "basis"_a = py::none(), "seed"_a = 0, "precision"_a = "highest",
         "Leading singular triplets of `a` into u, s, vh.");
  kernel(module, "range_finder", &bind_range_finder, "q"_a, "a"_a, py::kw_only(), "oversample"_a = 10, "niter"_a = 2,
         "basis"_a, "seed"_a, "precision"_a = "highest",
         "Leading left singular vectors of each array of the list `a` into its partner in q.");
  kernel(module, "factored_svd", &bind_factored_svd, "u"_a, "s"_a, "vh"_a, "b"_a, "a"_a,
         "Leading singular triplets of the product b a into u, s, vh.");
  kernel(module, "orthonormalize", &bind_orthonormalize, "q"_a, "y"_a, py::kw_only(), "method"_a = "auto",
         "Orthonormal basis of the columns of `y` into q; False where the method breaks down.");
  kernel(module, "qb", &bind_qb, "q"_a, "b"_a, "a"_a, py::kw_only(), "energy"_a, "block"_a = 16, "niter"_a = 1,
         "seed"_a, "Grows q b of each array of the list `a` until it captures `energy`; (rank, captured) of each.");
  kernel<Devices::kAny>(module, "sketch", &bind_sketch, "out"_a, py::kw_only(), "seed"_a = 0, "step"_a = 0,
                        "stream"_a = 0, "Fills `out` with the random signs that a sketch of its shape has.");
}

}  // namespace lowrank
