#include "lowrank_core/chain_lr.h"
#include "lowrank_core/normal.h"

#include <pybind11/stl.h>

#include "expect.h"
#include "kernel.h"
#include "register.h"

namespace py = pybind11;

namespace lowrank {
namespace {

// Memory safety only: the operators have checked the contract and worded the refusals.
void expect(bool fits, const char* what) {
  if (!fits) fail(std::string("chain_lr: ") + what + " do not fit");
}

// ---- products ----------------------------------------------------------------------------------------------------

void bind_chain_matmul(const WriteArray& out, const std::vector<ReadArray>& matrices) {
  expect(!matrices.empty() && out.view.rank >= 2, "the matrices");
  std::vector<View> views;
  for (const ReadArray& m : matrices) {
    expect(m.view.rank == 2 || (m.view.rank == out.view.rank && m.view.batch() == out.view.batch()),
           "the leading dimensions of a matrix");
    expect(m.view.dtype == out.view.dtype, "the dtypes");
    expect(views.empty() || cols_of(views.back()) == rows_of(m.view), "the shapes of two neighbours");
    views.push_back(m.view);
  }
  expect(rows_of(out.view) == rows_of(views[0]) && cols_of(out.view) == cols_of(views.back()), "the result's shape");
  chain_lr::chain_matmul_cpu(out.view, views);
}

std::vector<std::vector<int64_t>> bind_plan_chain(const std::vector<int64_t>& dims) {
  std::vector<chain_lr::Factor> factors;
  for (size_t i = 0; i + 1 < dims.size(); ++i) factors.push_back({dims[i], dims[i + 1], 1});
  return chain_lr::plan_chain(factors);
}

using OptionalArray = std::optional<ReadArray>;

std::optional<Matrix> square(const OptionalArray& middle, int64_t rank) {
  if (!middle) return std::nullopt;
  expect(is_matrix(middle->view, rank, rank), "first and middle");
  return middle->view.matrix();
}

void bind_adapter_linear(const WriteArray& y, const ReadArray& x, const OptionalArray& w, const ReadArray& first,
                         const ReadArray& last, const OptionalArray& middle, const OptionalArray& bias, double scale) {
  const int64_t t = rows_of(x.view), d_in = cols_of(x.view), d_out = cols_of(y.view), rank = cols_of(first.view);
  expect(is_matrix(x.view, t, d_in) && is_matrix(y.view, t, d_out), "x and y");
  expect(!w || is_matrix(w->view, d_out, d_in), "x, w and y");
  expect(is_matrix(first.view, d_in, rank) && is_matrix(last.view, d_out, rank), "first and last");
  std::optional<Matrix> row;
  if (bias) {
    expect(bias->view.rank == 1 && bias->view.shape[0] == d_out, "bias and y");
    row = Matrix{bias->view.data, bias->view.dtype, 1, d_out, 0, bias->view.stride[0]};
  }
  const chain_lr::Adapter adapter{first.view.matrix(), last.view.matrix(), square(middle, rank), scale};
  const auto full = w ? std::optional<Matrix>(w->view.matrix()) : std::nullopt;
  chain_lr::adapter_linear_cpu(y.view.matrix(), x.view.matrix(), full, adapter, row);
}

void bind_adapter_gradient(const WriteArray& first_grad, const WriteArray& last_grad, const ReadArray& dy,
                           const ReadArray& x, const ReadArray& first, const ReadArray& last,
                           const std::optional<WriteArray>& middle_grad, double scale) {
  const int64_t t = rows_of(x.view), d_in = cols_of(x.view), d_out = cols_of(dy.view), rank = cols_of(first.view);
  expect(is_matrix(x.view, t, d_in) && is_matrix(dy.view, t, d_out), "x and dy");
  expect(is_matrix(first.view, d_in, rank) && is_matrix(first_grad.view, d_in, rank), "first and its gradient");
  expect(is_matrix(last.view, d_out, rank) && is_matrix(last_grad.view, d_out, rank), "last and its gradient");
  chain_lr::AdapterGradient out{first_grad.view.matrix(), last_grad.view.matrix(), std::nullopt};
  if (middle_grad) {
    expect(is_matrix(middle_grad->view, rank, rank), "first and middle_grad");
    out.middle = middle_grad->view.matrix();
  }
  chain_lr::adapter_gradient_cpu(out, dy.view.matrix(), x.view.matrix(),
                                 {first.view.matrix(), last.view.matrix(), std::nullopt, scale});
}

using Reads = std::vector<ReadArray>;
using Writes = std::vector<WriteArray>;

void bind_scaled_gradients(const Writes& new_a, const Writes& new_b, const Reads& grad_a, const Reads& grad_b,
                           const Reads& a, const Reads& b, const std::vector<double>& dampings) {
  const size_t count = new_a.size();
  expect(new_b.size() == count && grad_a.size() == count && grad_b.size() == count && a.size() == count &&
             b.size() == count && dampings.size() == count,
         "the lists");
  std::vector<chain_lr::GramSolve> list;
  for (size_t i = 0; i < count; ++i) {
    const int64_t m = rows_of(b[i].view), rank = rows_of(a[i].view), n = cols_of(a[i].view);
    for (const View* view : {&a[i].view, &grad_a[i].view, &new_a[i].view}) {
      expect(is_matrix(*view, rank, n) && is_float(view->dtype), "a and what belongs to it");
    }
    for (const View* view : {&b[i].view, &grad_b[i].view, &new_b[i].view}) {
      expect(is_matrix(*view, m, rank) && is_float(view->dtype), "b and what belongs to it");
    }
    expect(dampings[i] > 0.0, "the dampings");
    list.push_back({new_a[i].view.matrix(), grad_a[i].view.matrix(), b[i].view.matrix(), dampings[i]});
    list.push_back({new_b[i].view.matrix().transposed(), grad_b[i].view.matrix().transposed(),
                    a[i].view.matrix().transposed(), dampings[i]});
  }
  chain_lr::gram_solve_cpu(list);
}

// ---- attention ---------------------------------------------------------------------------------------------------

// queries, keys, values, dout, weight, a, b.
using Arrays = std::vector<ReadArray>;

bool same_batch(const View& view, const View& like) {
  if (view.rank != like.rank || view.rank < 2) return false;
  for (int i = 0; i + 2 < view.rank; ++i) {
    if (view.shape[size_t(i)] != like.shape[size_t(i)]) return false;
  }
  return true;
}

chain_lr::Attention attention(const Arrays& arrays, const OptionalArray& mask, double scale, bool causal) {
  expect(arrays.size() == 7, "the arrays");
  const View &q = arrays[0].view, &k = arrays[1].view, &v = arrays[2].view, &dout = arrays[3].view;
  const View &weight = arrays[4].view, &a = arrays[5].view, &b = arrays[6].view;
  expect(same_batch(q, q) && same_batch(k, q) && same_batch(v, q) && same_batch(dout, q), "the leading dimensions");
  expect(is_matrix(weight, cols_of(q), cols_of(k)), "weight, queries and keys");
  expect(is_matrix(a, rows_of(a), cols_of(k)) && is_matrix(b, cols_of(q), rows_of(a)), "a, b, queries and keys");
  expect(rows_of(v) == rows_of(k) && rows_of(dout) == rows_of(q) && cols_of(dout) == cols_of(v), "values and dout");
  expect(!causal || rows_of(q) == rows_of(k), "queries and keys of a causal head");
  chain_lr::Attention problem{q, k, v, dout, std::nullopt, weight.matrix(), a.matrix(), b.matrix(), scale, causal};
  if (mask) {
    bool fits = mask->view.dtype == DType::kUInt8 && mask->view.rank == q.rank - 1;
    for (int i = 0; fits && i + 2 < q.rank; ++i) fits = mask->view.shape[size_t(i)] == q.shape[size_t(i)];
    expect(fits && mask->view.shape[size_t(q.rank - 2)] == rows_of(k), "mask and keys");
    expect(q.rank < View::kMaxRank, "dimensions beside a mask");
    problem.mask = mask->view;
  }
  return problem;
}

chain_lr::AttentionGradient gradient(const WriteArray& da, const WriteArray& db, const chain_lr::Attention& problem) {
  expect(is_matrix(da.view, problem.a.rows, problem.a.cols) && da.view.dtype == DType::kFloat64, "da and a");
  expect(is_matrix(db.view, problem.b.rows, problem.b.cols) && db.view.dtype == DType::kFloat64, "db and b");
  return {da.view.matrix(), db.view.matrix()};
}

chain_lr::Features features(const OptionalArray& left, const OptionalArray& right, int64_t degree,
                            const chain_lr::Attention& problem) {
  chain_lr::Features found{std::nullopt, std::nullopt, degree};
  expect(left.has_value() == right.has_value() && degree >= 0, "features");
  if (!left) return found;
  expect(same_batch(left->view, problem.queries) && same_batch(right->view, problem.queries) &&
             rows_of(left->view) == rows_of(problem.queries) && rows_of(right->view) == rows_of(problem.keys) &&
             cols_of(left->view) == cols_of(right->view),
         "features");
  found.left = left->view;
  found.right = right->view;
  return found;
}

void bind_exact(const WriteArray& da, const WriteArray& db, const Arrays& arrays, const OptionalArray& mask,
                double scale, bool causal) {
  const chain_lr::Attention problem = attention(arrays, mask, scale, causal);
  chain_lr::attention_exact_cpu(gradient(da, db, problem), problem);
}

void bind_chained(const WriteArray& da, const WriteArray& db, const Arrays& arrays, const OptionalArray& mask,
                  double scale, bool causal, int64_t degree, const OptionalArray& left, const OptionalArray& right) {
  const chain_lr::Attention problem = attention(arrays, mask, scale, causal);
  chain_lr::attention_chained_cpu(gradient(da, db, problem), problem, features(left, right, degree, problem));
}

double bind_score_bound(const Arrays& arrays, const OptionalArray& mask, double scale, bool causal, double enough) {
  return chain_lr::score_bound_cpu(attention(arrays, mask, scale, causal), enough);
}

double bind_sampled(const Arrays& arrays, const OptionalArray& mask, double scale, bool causal,
                    const OptionalArray& left, const OptionalArray& right) {
  const chain_lr::Attention problem = attention(arrays, mask, scale, causal);
  return chain_lr::sampled_error_cpu(problem, features(left, right, 0, problem));
}

void bind_operands(const WriteArray& queries, const WriteArray& keys, const Arrays& arrays, const OptionalArray& mask,
                   double scale) {
  const chain_lr::Attention problem = attention(arrays, mask, scale, false);
  expect(same_batch(queries.view, problem.queries) && same_batch(keys.view, problem.queries) &&
             rows_of(queries.view) == rows_of(problem.queries) && cols_of(queries.view) == problem.weight.cols &&
             rows_of(keys.view) == rows_of(problem.keys) && cols_of(keys.view) == problem.weight.cols,
         "queries and keys");
  chain_lr::attention_operands_cpu(queries.view, keys.view, problem);
}

void bind_gaussian(const std::vector<WriteArray>& out, const std::vector<uint64_t>& seeds,
                   const std::vector<double>& divisors) {
  LRC_CHECK(seeds.size() == out.size() && divisors.size() == out.size(), "gaussian: lists must be of one length");
  std::vector<normal::Draw> draws;
  for (size_t i = 0; i < out.size(); ++i) draws.push_back({out[i].view, seeds[i], divisors[i]});
  normal::fill(draws);
}

}  // namespace

void register_chain_lr(py::module_& module) {
  using namespace py::literals;
  kernel(module, "chain_matmul", &bind_chain_matmul, "out"_a, "matrices"_a,
         "The product of a list of matrices, or batches of them, into out.");
  kernel(module, "plan_chain", &bind_plan_chain, "dims"_a,
         "Last split of factors i .. j of a chain of plain matrices [dims[i], dims[i + 1]].");
  kernel(module, "adapter_linear", &bind_adapter_linear, "y"_a, "x"_a, "w"_a, "first"_a, "last"_a, py::kw_only(),
         "middle"_a = py::none(), "bias"_a = py::none(), "scale"_a,
         "y <- x wᵀ + scale ((x first) middleᵀ) lastᵀ + bias, without what is None.");
  kernel(module, "adapter_gradient", &bind_adapter_gradient, "first_grad"_a, "last_grad"_a, "dy"_a, "x"_a, "first"_a,
         "last"_a, py::kw_only(), "middle_grad"_a = py::none(), "scale"_a,
         "With G = dyᵀ x: scale Gᵀ last, scale G first and scale lastᵀ G first.");
  kernel(module, "scaled_gradients", &bind_scaled_gradients, "new_a"_a, "new_b"_a, "grad_a"_a, "grad_b"_a, "a"_a, "b"_a,
         "dampings"_a,
         "For each pair of factors: new_a <- (bᵀ b + damping I)⁻¹ grad_a, new_b <- grad_b (a aᵀ + damping I)⁻¹.");
  kernel(module, "attention_exact", &bind_exact, "da"_a, "db"_a, "arrays"_a, py::kw_only(), "mask"_a, "scale"_a,
         "causal"_a, "Gradients of an attention adapter by tiles of scores.");
  kernel(module, "attention_chained", &bind_chained, "da"_a, "db"_a, "arrays"_a, py::kw_only(), "mask"_a, "scale"_a,
         "causal"_a, "degree"_a, "left"_a, "right"_a,
         "The same by features: monomials up to a degree, or the ones given.");
  kernel(module, "attention_score_bound", &bind_score_bound, "arrays"_a, py::kw_only(), "mask"_a, "scale"_a, "causal"_a,
         "enough"_a,
         "A bound of all |scores| that is at most `enough`; where a score is larger than that, one that is.");
  kernel(module, "attention_sampled_error", &bind_sampled, "arrays"_a, py::kw_only(), "mask"_a, "scale"_a, "causal"_a,
         "left"_a, "right"_a, "Relative error of a few rows by given features.");
  kernel(module, "attention_operands", &bind_operands, "queries"_a, "keys"_a, "arrays"_a, py::kw_only(), "mask"_a,
         "scale"_a, "What features are taken of: effective queries, and keys less their mean.");
  kernel(module, "taylor_error", &chain_lr::taylor_error, "largest"_a, "degree"_a,
         "Estimated relative error of the chained gradient where exp is cut after an even degree.");
  kernel(module, "taylor_score", &chain_lr::taylor_score, "error"_a, "degree"_a,
         "The largest score whose `taylor_error` is at most `error`.");
  kernel(module, "gaussian", &bind_gaussian, "out"_a, py::kw_only(), "seeds"_a, "divisors"_a,
         "Fills each of a list with standard normal numbers of its seed, over its divisor.");
}

}  // namespace lowrank
