"""Mutants that no test can catch, with the sentence that proves it: file, line before and after, proof."""

from __future__ import annotations

EQUIVALENT: dict[tuple[str, str, str], str] = {
    (
        "python/lowrank_core/optim/targets.py",
        "yield from (p for name, p in module.named_parameters(recurse=False) if name in _LINEAR_WEIGHTS)",
        "yield from (p for name, p in module.named_parameters(recurse=True) if name in _LINEAR_WEIGHTS)",
    ): "The names of a child's parameters have a dot in them, and none of `_LINEAR_WEIGHTS` has.",
    (
        "cpp/include/lowrank_core/dct_select.h",
        "LRC_HD int64_t makhoul_place(int64_t n, int64_t i) { return i % 2 == 0 ? i / 2 : n - (i + 1) / 2; }",
        "LRC_HD int64_t makhoul_place(int64_t n, int64_t i) { return i % 2 == 0 ? i / 2 : n - (i + 2) / 2; }",
    ): "Of an odd i, halves of i + 1 and of i + 2 are the same integer.",
    (
        "cpp/include/lowrank_core/dct_select.h",
        "for (; shared != 0; shared &= shared - 1) odd ^= 1;",
        "for (; shared != 0; shared &= shared - 1) odd ^= 2;",
    ): "`odd` is only asked whether it is zero, and goes from zero to not zero and back either way.",
    (
        "python/lowrank_core/ops/kalman_diag/autograd.py",
        "dr = ds if r.ndim == 2 else ds.diagonal() if r.ndim == 1 else ds.diagonal().sum()",
        "dr = ds if r.ndim == 2 else ds.diagonal() if r.ndim == 1 else ds.diagonal()",
    ): "Autograd itself sums a gradient [m] of a tensor of no dimensions to that shape.",
    (
        "python/lowrank_core/ops/kalman_diag/filter.py",
        "run = torch_ops().kalman_diag_step_ if lists[0] and is_torch(lists[0][0]) else _step_list",
        "run = torch_ops().kalman_diag_step_ if lists[0] and is_torch(lists[ -1][0]) else _step_list",
    ): "`check_lists` has refused a score of another library than its theta, and lists of other lengths.",
    (
        "python/lowrank_core/memory/gradients.py",
        "return min(1.0, (self.held + self.passing) / max(1, self.ordinary))",
        "return min(1.0, (self.held + self.passing) / max( 2, self.ordinary))",
    ): "An element has two bytes or more, and without any the numerator is zero.",
    (
        "python/lowrank_core/cli/study/intervals.py",
        "low, high = 0.0, 1.0",
        "low, high = 0.0, 2.0",
    ): "A bisection to the last bit ends at the same number from any bracket around it.",
    (
        "python/lowrank_core/cli/study/published.py",
        'Claim("ldadam", TIME, _DCT, ratio=(2 * 24 + 1 + 24 / 60) / (24 + 13 + 22 / 60)),',
        'Claim("ldadam", TIME, _DCT, ratio=(2 * 24 + 1 + 24 / 60) / (24 + 13 + 22 / 61)),',
    ): "The ratio is shown with two digits behind the point, which are the same.",
    (
        "python/lowrank_core/optim/methods/frugal.py",
        'lines, block = DrawnLines(), Blocks(share_of(group) or 0.0, group["update_proj_gap"])',
        'lines, block = DrawnLines(), Blocks(share_of(group) or -1.0, group["update_proj_gap"])',
    ): "With a share of 0 each matrix has its place at rank 0, at work or not; without a share there are no blocks.",
    (
        "python/lowrank_core/optim/parts/schedules/never.py",
        "return False",
        "return True",
    ): "It goes with projectors of each step alone, which no schedule is asked about.",
    (
        "python/lowrank_core/optim/parts/schedules/never.py",
        "observes: ClassVar[bool] = False",
        "observes: ClassVar[bool] = True",
    ): "Its `observe` does nothing.",
    (
        "python/lowrank_core/optim/parts/schedules/fixed_gap.py",
        'return passed or state["proj.refreshes"] == 0',
        'return passed or state["proj.refreshes"] <= 0',
    ): "A number of refreshes is never negative.",
}
