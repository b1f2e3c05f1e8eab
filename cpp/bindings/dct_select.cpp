#include "lowrank_core/dct_select.h"

#include <pybind11/stl.h>

#include <type_traits>

#include "expect.h"
#include "kernel.h"
#include "lowrank_core/parallel.h"
#include "register.h"

namespace py = pybind11;

namespace lowrank {
namespace {

using OptionalArray = std::optional<ReadArray>;

dct_select::Basis basis_of(const std::string& name) {
  if (name == "dct2") return dct_select::Basis::kDct2;
  if (name == "dct3") return dct_select::Basis::kDct3;
  if (name == "hadamard") return dct_select::Basis::kHadamard;
  LRC_CHECK(name == "identity" || name == "custom",
            "dct_select: `basis` must be 'dct2', 'dct3', 'identity' or 'hadamard', got '" + name + "'");
  return dct_select::Basis::kIdentity;
}

dct_select::Method method_of(const std::string& name) {
  if (name == "auto") return dct_select::Method::kAuto;
  if (name == "fft") return dct_select::Method::kFft;
  LRC_CHECK(name == "gemm", "dct: `method` must be 'auto', 'fft' or 'gemm', got '" + name + "'");
  return dct_select::Method::kGemm;
}

bool is_left(const std::string& side) {
  LRC_CHECK(side == "left" || side == "right", "dct_select: `side` must be 'left' or 'right', got '" + side + "'");
  return side == "left";
}

constexpr Expect expect{"dct_select"};

void expect_float(const View& view, const char* argument, int least_rank) {
  expect(is_float(view.dtype) && view.rank >= least_rank, argument);
}

void expect_like(const View& view, const View& like, const char* argument) {
  expect_float(view, argument, like.rank);
  expect(view.rank == like.rank && view.shape == like.shape, argument);
}

// [..., r] int64, contiguous, one list for each matrix.
int64_t* indices_of(const View& view, int64_t batch, int64_t count, const char* argument) {
  expect(view.rank >= 1 && view.dtype == DType::kInt64 && view.contiguous(), argument);
  expect(view.shape[size_t(view.rank - 1)] == count && view.size() == batch * count, argument);
  return static_cast<int64_t*>(view.data);
}

// n < 0: of a basis whose width is not known here.
void expect_ascending(const std::string& argument, const int64_t* indices, int64_t count, int64_t n) {
  int64_t least = 0;
  for (int64_t i = 0; i < count; ++i) {
    if (indices[i] < least || (n >= 0 && indices[i] >= n)) {
      const std::string range = n < 0 ? ">= 0" : "between 0 and " + std::to_string(n - 1);
      fail(argument + " must ascend without repeats and be " + range + ", got " + std::to_string(indices[i]) +
           " at position " + std::to_string(i) + "; pass what dct_select returned");
    }
    least = indices[i] + 1;
  }
}

Matrix oriented(const View& view, int64_t index, bool left) {
  const Matrix m = view.matrix(index);
  return left ? m.transposed() : m;
}

dct_select::Selection selection_of(const std::string& basis, const OptionalArray& atoms, int64_t n, int64_t norm_ord) {
  dct_select::Selection selection{basis_of(basis), std::nullopt, int(norm_ord)};
  LRC_CHECK(norm_ord == 1 || norm_ord == 2, "dct_select: `norm_ord` must be 1 or 2");
  LRC_CHECK((basis == "custom") == atoms.has_value(), "dct_select: `basis` must be 'custom' with an array of atoms");
  const bool power = (n & (n - 1)) == 0;
  LRC_CHECK(basis != "hadamard" || power, "dct_select: `basis` 'hadamard' needs a power of two");
  if (!atoms) return selection;
  expect_float(atoms->view, "atoms", 2);
  expect(atoms->view.rank == 2 && atoms->view.shape[0] == n && atoms->view.shape[1] == n, "atoms");
  selection.atoms = atoms->view.matrix();
  return selection;
}

void bind_transform(const WriteArray& out, const ReadArray& x, const std::string& basis, const std::string& method) {
  expect_float(x.view, "x", 1);
  expect_like(out.view, x.view, "out");
  const dct_select::Basis kind = basis_of(basis);
  const int64_t n = x.view.shape[size_t(x.view.rank - 1)];
  LRC_CHECK(n < (int64_t(1) << 29), "dct: the length must be below 2^29");
  dct_select::transform_cpu(out.view, x.view, kind, method_of(method));
}

// The outputs of a selection, checked against g.
struct Chosen {
  int64_t* indices;
  double* captured;
  int64_t rank, n;
};

Chosen chosen(const View& indices, const View& coeffs, const View& captured, const View& g, bool left) {
  expect_float(g, "g", 2);
  expect_float(coeffs, "coeffs", 2);
  expect(coeffs.rank == g.rank && coeffs.batch() == g.batch(), "coeffs");
  expect(captured.dtype == DType::kFloat64 && captured.contiguous() && captured.size() == g.batch(), "captured");
  const bool any = g.batch() > 0;
  const int64_t last = g.rank - (left ? 2 : 1), other = g.rank - (left ? 1 : 2);
  const int64_t n = g.shape[size_t(last)], rank = coeffs.shape[size_t(last)];
  expect(coeffs.shape[size_t(other)] == g.shape[size_t(other)] && rank <= n, "coeffs");
  return {indices_of(indices, g.batch(), rank, "indices"), any ? static_cast<double*>(captured.data) : nullptr, rank,
          n};
}

void bind_select(const WriteArray& indices, const WriteArray& coeffs, const WriteArray& captured, const ReadArray& g,
                 const std::string& basis, const OptionalArray& atoms, const std::string& side, int64_t norm_ord) {
  const bool left = is_left(side);
  const Chosen to = chosen(indices.view, coeffs.view, captured.view, g.view, left);
  const dct_select::Selection selection = selection_of(basis, atoms, to.n, norm_ord);
  for (int64_t i = 0; i < g.view.batch(); ++i) {
    to.captured[i] = dct_select::select_cpu(to.indices + i * to.rank, oriented(coeffs.view, i, left),
                                            oriented(g.view, i, left), selection);
  }
}

void bind_feedback(const WriteArray& indices, const WriteArray& coeffs, const WriteArray& captured,
                   const WriteArray& residual, const ReadArray& g, double keep, const std::string& basis,
                   const OptionalArray& atoms, const std::string& side, int64_t norm_ord) {
  const bool left = is_left(side);
  const Chosen to = chosen(indices.view, coeffs.view, captured.view, g.view, left);
  expect_like(residual.view, g.view, "residual");
  const dct_select::Selection selection = selection_of(basis, atoms, to.n, norm_ord);
  for (int64_t i = 0; i < g.view.batch(); ++i) {
    to.captured[i] =
        dct_select::feedback_cpu(to.indices + i * to.rank, oriented(coeffs.view, i, left),
                                 oriented(residual.view, i, left), oriented(g.view, i, left), keep, selection);
  }
}

void bind_project_back(const WriteArray& out, const ReadArray& coeffs, const ReadArray& indices,
                       const std::string& basis, const OptionalArray& atoms, const std::string& side) {
  const bool left = is_left(side);
  expect_float(out.view, "out", 2);
  expect_float(coeffs.view, "coeffs", 2);
  expect(out.view.rank == coeffs.view.rank && out.view.batch() == coeffs.view.batch(), "out");
  const size_t last = size_t(out.view.rank - (left ? 2 : 1)), other = size_t(out.view.rank - (left ? 1 : 2));
  const int64_t n = out.view.shape[last], rank = coeffs.view.shape[last];
  expect(out.view.shape[other] == coeffs.view.shape[other], "out");
  const int64_t* const list = indices_of(indices.view, out.view.batch(), rank, "indices");
  const dct_select::Selection selection = selection_of(basis, atoms, n, 2);
  for (int64_t i = 0; i < out.view.batch(); ++i)
    expect_ascending("dct_project_back: `indices`", list + i * rank, rank, n);
  for (int64_t i = 0; i < out.view.batch(); ++i) {
    dct_select::project_back_cpu(oriented(out.view, i, left), oriented(coeffs.view, i, left), list + i * rank,
                                 selection);
  }
}

using Reads = std::vector<ReadArray>;
using Writes = std::vector<WriteArray>;

constexpr int64_t kOneThreadEach = 1 << 18;  // elements of matrices that get one thread each, if there are several

// one(i) for each of a list of matrices: small ones side by side, others one after the other, with all threads.
template <class One>
void for_each_of(const Reads& matrices, const One& one) {
  std::vector<size_t> small;
  for (size_t i = 0; i < matrices.size(); ++i) {
    if (matrices[i].view.size() <= kOneThreadEach) {
      small.push_back(i);
    } else {
      one(i);
    }
  }
  parallel_for(int64_t(small.size()), [&](int64_t i) { one(small[size_t(i)]); });
}

void bind_feedback_list(const Writes& indices, const Writes& coeffs, const Writes& captured, const Writes& residuals,
                        const Reads& g, const std::vector<bool>& left, double keep, const std::string& basis,
                        int64_t norm_ord, bool finite) {
  const size_t count = g.size();
  expect(indices.size() == count && coeffs.size() == count && captured.size() == count, "indices");
  expect(residuals.size() == count && left.size() == count, "residuals");
  std::vector<Chosen> to;
  std::vector<dct_select::Selection> selections;
  for (size_t i = 0; i < count; ++i) {
    to.push_back(chosen(indices[i].view, coeffs[i].view, captured[i].view, g[i].view, left[i]));
    expect(g[i].view.rank == 2, "g");
    expect_like(residuals[i].view, g[i].view, "residuals");
    selections.push_back(selection_of(basis, std::nullopt, to[i].n, norm_ord));
  }
  for_each_of(g, [&](size_t i) {
    *to[i].captured = dct_select::feedback_cpu(to[i].indices, oriented(coeffs[i].view, 0, left[i]),
                                               oriented(residuals[i].view, 0, left[i]), oriented(g[i].view, 0, left[i]),
                                               keep, selections[i], finite);
  });
}

void bind_project_back_list(const Writes& out, const Reads& coeffs, const Reads& indices, const std::vector<bool>& left,
                            const std::string& basis) {
  const size_t count = coeffs.size();
  expect(out.size() == count && indices.size() == count && left.size() == count, "out");
  std::vector<const int64_t*> lists;
  std::vector<dct_select::Selection> selections;
  for (size_t i = 0; i < count; ++i) {
    expect_float(out[i].view, "out", 2);
    expect_float(coeffs[i].view, "coeffs", 2);
    const Matrix to = oriented(out[i].view, 0, left[i]), from = oriented(coeffs[i].view, 0, left[i]);
    expect(out[i].view.rank == 2 && coeffs[i].view.rank == 2 && to.rows == from.rows, "out");
    lists.push_back(indices_of(indices[i].view, 1, from.cols, "indices"));
    expect_ascending("dct_project_back: `indices`", lists[i], from.cols, to.cols);
    selections.push_back(selection_of(basis, std::nullopt, to.cols, 2));
  }
  for_each_of(coeffs, [&](size_t i) {
    dct_select::project_back_cpu(oriented(out[i].view, 0, left[i]), oriented(coeffs[i].view, 0, left[i]), lists[i],
                                 selections[i]);
  });
}

// Both moments of one subspace, each to its own array.
void bind_rotate(const WriteArray& m_out, const WriteArray& v_out, const ReadArray& m, const ReadArray& v,
                 const ReadArray& old_indices, const ReadArray& new_indices, const std::string& side) {
  const bool left = is_left(side);
  expect_float(m.view, "m", 2);
  expect_float(m_out.view, "m_out", 2);
  expect_like(v.view, m.view, "v");
  expect_like(v_out.view, m_out.view, "v_out");
  const size_t last = size_t(m.view.rank - (left ? 2 : 1)), other = size_t(m.view.rank - (left ? 1 : 2));
  expect(m_out.view.rank == m.view.rank && m_out.view.batch() == m.view.batch(), "m_out");
  expect(m_out.view.shape[other] == m.view.shape[other] && m_out.view.dtype == m.view.dtype, "m_out");
  expect(v_out.view.dtype == v.view.dtype, "v_out");
  const int64_t batch = m.view.batch(), before = m.view.shape[last], after = m_out.view.shape[last];
  const int64_t* const from = indices_of(old_indices.view, batch, before, "old_indices");
  const int64_t* const to = indices_of(new_indices.view, batch, after, "new_indices");
  for (int64_t i = 0; i < batch; ++i) {
    expect_ascending("rotate_moments: `old_indices`", from + i * before, before, -1);
    expect_ascending("rotate_moments: `new_indices`", to + i * after, after, -1);
  }
  for (int64_t i = 0; i < batch; ++i) {
    dct_select::rotate_cpu(oriented(m_out.view, i, left), oriented(m.view, i, left), from + i * before, to + i * after);
    dct_select::rotate_cpu(oriented(v_out.view, i, left), oriented(v.view, i, left), from + i * before, to + i * after);
  }
}

}  // namespace

void register_dct_select(py::module_& module) {
  using namespace py::literals;
  kernel(module, "dct_transform", &bind_transform, "out"_a, "x"_a, py::kw_only(), "basis"_a = "dct2",
         "method"_a = "auto", "Coordinates of `x` along its last dimension into out; dct3 is the inverse of dct2.");
  kernel(module, "dct_select", &bind_select, "indices"_a, "coeffs"_a, "captured"_a, "g"_a, py::kw_only(), "basis"_a,
         "atoms"_a = py::none(), "side"_a, "norm_ord"_a = 2,
         "The best atoms for `g`: their numbers, coordinates, and the share of the squares that they capture.");
  kernel(module, "dct_select_feedback", &bind_feedback, "indices"_a, "coeffs"_a, "captured"_a, "residual"_a, "g"_a,
         py::kw_only(), "keep"_a, "basis"_a, "atoms"_a = py::none(), "side"_a, "norm_ord"_a = 2,
         "The same for coordinates of `g` plus `residual`, which becomes what was not chosen.");
  kernel(module, "dct_select_feedback_list", &bind_feedback_list, "indices"_a, "coeffs"_a, "captured"_a, "residuals"_a,
         "g"_a, "left"_a, py::kw_only(), "keep"_a, "basis"_a, "norm_ord"_a, "finite"_a,
         "The same for a list of matrices; `finite`: the caller knows that all of `g` are.");
  kernel(module, "dct_project_back", &bind_project_back, "out"_a, "coeffs"_a, "indices"_a, py::kw_only(), "basis"_a,
         "atoms"_a = py::none(), "side"_a, "The matrix that has these coordinates into out.");
  kernel(module, "dct_project_back_list", &bind_project_back_list, "out"_a, "coeffs"_a, "indices"_a, "left"_a,
         py::kw_only(), "basis"_a, "The same for a list of matrices.");
  kernel(module, "rotate_moments", &bind_rotate, "m_out"_a, "v_out"_a, "m"_a, "v"_a, "old_indices"_a, "new_indices"_a,
         py::kw_only(), "side"_a, "Both moments moved to where their atom is in the new list.");
}

}  // namespace lowrank
