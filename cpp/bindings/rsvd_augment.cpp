#include "lowrank_core/rsvd_augment.h"

#include <pybind11/stl.h>

#include "expect.h"
#include "kernel.h"
#include "register.h"

namespace py = pybind11;

namespace lowrank {
namespace {

Matrix expect(const View& view, int64_t rows, int64_t cols) {
  LRC_CHECK(is_matrix(view, rows, cols), "augment_truncate: the shapes of a layer do not fit");
  return view.matrix();
}

// u, s, v, gv, gu and perhaps gs.
rsvd::AugmentInput input(const std::vector<ReadArray>& layer, double weight) {
  LRC_CHECK(layer.size() == 5 || layer.size() == 6, "augment_truncate: a layer has 5 or 6 arrays");
  LRC_CHECK(layer[0].view.rank == 2 && layer[2].view.rank == 2, "augment_truncate: `u` and `v` must be matrices");
  const int64_t m = layer[0].view.shape[0], n = layer[2].view.shape[0], r = layer[0].view.shape[1];
  LRC_CHECK(r <= m && r <= n, "augment_truncate: `u` and `v` must have at least as many rows as columns");
  rsvd::AugmentInput in{expect(layer[0].view, m, r),
                        expect(layer[1].view, r, r),
                        expect(layer[2].view, n, r),
                        expect(layer[3].view, m, r),
                        expect(layer[4].view, n, r),
                        std::nullopt,
                        weight};
  if (layer.size() == 6) in.gs = expect(layer[5].view, r, r);
  return in;
}

// u, s, v, left, right.
rsvd::AugmentOutput output(const std::vector<WriteArray>& layer, const rsvd::AugmentInput& in) {
  LRC_CHECK(layer.size() == 5, "augment_truncate: the output of a layer has 5 arrays");
  const int64_t m = in.u.rows, n = in.v.rows, r = in.u.cols, width = rsvd::augmented_width(m, n, r);
  const rsvd::AugmentOutput out{expect(layer[0].view, m, width), expect(layer[1].view, width, width),
                                expect(layer[2].view, n, width), expect(layer[3].view, r, width),
                                expect(layer[4].view, r, width)};
  for (const Matrix& part : {out.s, out.v, out.left, out.right}) {
    LRC_CHECK(part.dtype == out.u.dtype, "augment_truncate: the output of a layer must have one dtype");
  }
  return out;
}

std::vector<std::pair<int64_t, double>> bind_augment(const std::vector<std::vector<WriteArray>>& out,
                                                     const std::vector<std::vector<ReadArray>>& layers, double lr,
                                                     double tol, int64_t min_rank, int64_t max_rank,
                                                     const std::optional<int64_t>& budget,
                                                     const std::vector<double>& weights) {
  LRC_CHECK(out.size() == layers.size() && weights.size() == layers.size(),
            "augment_truncate: the lists must have the same length");
  std::vector<rsvd::AugmentInput> inputs;
  std::vector<rsvd::AugmentOutput> outputs;
  for (size_t i = 0; i < layers.size(); ++i) {
    inputs.push_back(input(layers[i], weights[i]));
    outputs.push_back(output(out[i], inputs.back()));
  }
  std::vector<std::pair<int64_t, double>> results;
  for (const auto& [rank, lost] : rsvd::augment_truncate_cpu(outputs, inputs, {lr, tol, min_rank, max_rank, budget})) {
    results.emplace_back(rank, lost);
  }
  return results;
}

}  // namespace

void register_rsvd_augment(py::module_& module) {
  using namespace py::literals;
  kernel(module, "augment_truncate", &bind_augment, "out"_a, "layers"_a, py::kw_only(), "lr"_a, "tol"_a, "min_rank"_a,
         "max_rank"_a, "budget"_a, "weights"_a,
         "One basis step of each layer into out; returns (rank, share lost) for each.");
}

}  // namespace lowrank
