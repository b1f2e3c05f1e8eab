"""Which tests are near which file of the package, and near which header."""

from __future__ import annotations

# Prefix of a source file, tests to run first. The longest prefix decides; folders stand for what is in them.
FIRST = (
    ("optim/parts/projectors/by_energy", ("optim/test_adarankgrad.py",)),
    ("optim/parts/schedules/convergence", ("optim/test_adarankgrad.py",)),
    ("optim/parts/projectors/following", ("optim/test_ldadam.py",)),
    ("optim/parts/residuals/fed_back", ("optim/test_ldadam.py",)),
    ("optim/following", ("optim/test_ldadam.py",)),
    ("ops/subspace_step/following", ("ops/subspace_step/test_follow_step.py", "optim/test_ldadam.py")),
    ("optim/lifts", ("optim/test_ldadam.py", "optim/test_rules.py")),
    ("optim/methods/s", ("optim/test_whole.py", "optim/test_optim_defaults.py")),
    *(
        (f"optim/{file}", ("optim/test_flora.py", "optim/test_rules.py"))
        for file in ("methods/flora", "parts/residuals/sketched", "parts/rules/average", "parts/rules/adafactor")
    ),
    ("optim/layerwise/compressed", ("optim/test_flora_accumulation.py",)),
    ("optim/layerwise/flag", ("optim/test_layerwise_scaler.py", "optim/test_layerwise_handle.py")),
    ("optim/layerwise/norms", ("optim/test_layerwise_clip.py",)),
    ("optim/layerwise/__init__", ("optim/test_layerwise_refusals.py", "optim/test_layerwise_handle.py")),
    (
        "optim/layerwise/held",
        ("optim/test_layerwise.py", "optim/test_flora_accumulation.py", "optim/test_layerwise_memory.py"),
    ),
    (
        "optim/layerwise/",
        (
            "optim/test_layerwise.py",
            "optim/test_layerwise_clip.py",
            "optim/test_layerwise_handle.py",
            "optim/test_layerwise_scaler.py",
        ),
    ),
    ("optim/watched", ("optim/test_monitor_others.py", "optim/test_monitor.py")),
    ("optim/monitor", ("optim/test_monitor.py", "optim/test_monitor_others.py")),
    ("memory/gradients", ("cli/test_estimate.py", "optim/test_layerwise_memory.py")),
    ("memory/training", ("cli/test_estimate.py", "optim/test_layerwise_memory.py")),
    ("optim/int8", ("optim/test_int8.py", "optim/test_int8_training.py")),
    *(
        (f"optim/{file}", ("optim/test_qgalore.py", "optim/test_optim_defaults.py", "optim/test_contract_state.py"))
        for file in (
            "methods/qgalore",
            "parts/packing",
            "parts/projectors/packed",
            "parts/subspaces/packed",
            "parts/schedules/lazy",
        )
    ),
    ("optim/methods/dct", ("optim/test_dct.py", "optim/test_dct_auto.py", "optim/test_optim_defaults.py")),
    ("optim/methods/muon", ("optim/test_muon.py", "optim/test_optim_defaults.py")),
    ("optim/methods/dion2", ("optim/test_trion.py", "optim/test_optim_defaults.py")),
    ("optim/methods/trion", ("optim/test_trion.py", "optim/test_optim_defaults.py")),
    ("optim/methods/coap", ("optim/test_coap.py", "optim/test_optim_defaults.py", "optim/test_contract_state.py")),
    (
        "optim/methods/ldadam",
        ("optim/test_ldadam.py", "optim/test_optim_defaults.py", "optim/test_contract_state.py"),
    ),
    (
        "optim/methods/adarankgrad",
        ("optim/test_adarankgrad.py", "optim/test_optim_defaults.py", "optim/test_contract_state.py"),
    ),
    ("optim/methods/", ("optim/test_optim_defaults.py", "optim/test_fira.py", "optim/test_apollo.py")),
    (
        "optim/parts/codecs",
        ("optim/test_parts.py", "optim/test_moment_dtypes.py", "optim/test_seams.py", "optim/test_contract_state.py"),
    ),
    (
        "optim/parts/residuals/feedback",
        ("optim/test_trion.py", "optim/test_dct.py", "optim/test_dct_auto.py", "optim/test_muon.py"),
    ),
    ("optim/parts/residuals/drop", ("optim/test_fused.py", "optim/test_layerwise.py")),
    (
        "optim/parts/residuals",
        ("optim/test_limiter.py", "optim/test_fira.py", "optim/test_apollo.py", "optim/test_fused.py"),
    ),
    (
        "optim/parts/projectors/selected",
        ("optim/test_whole.py", "optim/test_frugal.py", "optim/test_contract_state.py"),
    ),
    ("optim/parts/subspaces/selection", ("optim/test_whole.py", "optim/test_frugal.py")),
    ("optim/parts/residuals/sign", ("optim/test_frugal.py", "optim/test_fused.py")),
    ("optim/methods/frugal", ("optim/test_frugal.py", "optim/test_optim_defaults.py", "optim/test_state_bytes.py")),
    ("optim/lines", ("optim/test_lines.py", "optim/test_whole.py")),
    ("optim/parts/lines", ("optim/test_whole.py",)),
    ("optim/parts/rules/lines", ("optim/test_whole.py",)),
    ("optim/parts/projectors/correlated", ("optim/test_coap.py",)),
    ("optim/parts/rules/newton_schulz", ("optim/test_newton_schulz.py", "optim/test_muon.py")),
    ("optim/parts/rules/column_adam", ("optim/test_dct.py", "optim/test_atoms.py")),
    ("optim/parts/atoms", ("optim/test_atoms.py", "optim/test_dct.py", "optim/test_dct_auto.py")),
    ("optim/parts/subspaces/indices", ("optim/test_atoms.py", "optim/test_dct.py")),
    (
        "optim/parts/projectors/selection",
        ("optim/test_atoms.py", "optim/test_dct.py", "optim/test_dct_auto.py", "optim/test_trion.py"),
    ),
    ("optim/parts/orthogonal", ("optim/test_muon.py", "optim/test_trion.py")),
    (
        "optim/each_step",
        (
            "optim/test_trion.py",
            "optim/test_dct.py",
            "optim/test_dct_auto.py",
            "optim/test_muon.py",
            "optim/test_fused.py",
        ),
    ),
    ("optim/parts/projectors", ("optim/test_searches.py", "optim/test_refresh.py", "optim/test_apollo_projection.py")),
    ("optim/parts/products", ("optim/test_without_kernels.py", "optim/test_searches.py")),
    (
        "optim/parts/rules",
        ("optim/test_rules.py", "optim/test_golden.py", "optim/test_parts.py", "optim/test_trajectory.py"),
    ),
    ("optim/parts/schedules/never", ("optim/test_trion.py", "optim/test_dct.py", "optim/test_whole.py")),
    ("optim/parts/schedules", ("optim/test_stagger.py", "optim/test_refresh.py", "optim/test_optim_defaults.py")),
    ("optim/parts/", ("optim/test_parts.py", "optim/test_subspaces.py", "optim/test_golden.py")),
    (
        "optim/fused",
        ("optim/test_half_steps.py", "optim/test_fused.py", "optim/test_kernels_used.py", "optim/test_golden.py"),
    ),
    (
        "optim/refresh",
        ("optim/test_scales.py", "optim/test_refresh.py", "optim/test_searches.py", "optim/test_draws.py"),
    ),
    ("memory/lisa", ("optim/test_lisa.py",)),
    ("optim/parts/selectors", ("optim/test_selections.py", "optim/test_lisa.py")),
    ("optim/lisa", ("optim/test_lisa.py",)),
    ("optim/stacks", ("optim/test_lisa.py",)),
    ("memory/stacks", ("optim/test_stacked_groups.py",)),
    ("optim/experts", ("optim/test_stacked_groups.py",)),
    ("optim/states", ("optim/test_stacked_state.py", "optim/test_load_state.py")),
    ("optim/targets", ("optim/test_targets.py", "optim/test_param_groups.py")),
    ("optim/groups", ("optim/test_param_groups.py", "optim/test_targets.py")),
    ("optim/estimate", ("optim/test_state_bytes.py",)),
    ("optim/checkpoint", ("optim/test_load_state.py", "optim/test_contract_state.py", "optim/test_golden_states.py")),
    ("optim/admission", ("optim/test_admission.py", "optim/test_optim_refusals.py", "optim/test_drop_in.py")),
    ("optim/options", ("optim/test_optim_refusals.py", "optim/test_drop_in.py")),
    ("optim/devices", ("optim/test_deferred.py", "optim/test_deferred_state.py", "optim/test_golden.py")),
    ("optim/slots", ("optim/test_drafts.py", "optim/test_draws.py", "optim/test_drop_in.py", "optim/test_stacked.py")),
    ("optim/seeds", ("optim/test_seeds.py",)),
    ("optim/step", ("optim/test_half_steps.py", "optim/test_golden.py", "optim/test_deferred.py")),
    (
        "optim/",
        ("optim/test_golden.py", "optim/test_deferred.py", "optim/test_deferred_state.py", "optim/test_load_state.py"),
    ),
    (
        "ops/arrays",
        ("ops/test_caster.py", "ops/test_foreign_arrays.py", "ops/test_integers.py", "ops/test_not_finite.py"),
    ),
    ("ops/torch_autograd", ("ops/test_derivatives.py",)),
    ("ops/torch_vmap", ("ops/test_vmap.py",)),
    *(
        (f"ops/{file}", ("ops/test_derivatives.py",))
        for file in (
            "chain_lr/autograd",
            "chain_lr/forward",
            "chain_lr/backward",
            "dct_select/autograd",
            "int4_project/autograd",
        )
    ),
    ("ops/kalman_diag/", ("ops/kalman_diag/test_kalman_diag_float32.py", "ops/kalman_diag", "ops/test_derivatives.py")),
    ("ops/rsvd/autograd", ("ops/rsvd/test_rsvd_autograd.py", "ops/rsvd/test_rsvd_autograd_scales.py")),
    ("ops/rsvd/augment", ("ops/rsvd/test_rsvd_augment.py",)),
    ("ops/rsvd/lists", ("ops/rsvd/test_rsvd_qb_list.py", "ops/test_integers.py", "ops/test_any_scale_refusals.py")),
    ("ops/rsvd/projection", ("ops/rsvd/test_rsvd_project.py", "ops/test_matmul_precision.py")),
    (
        "ops/rsvd/factor",
        ("ops/rsvd/test_rsvd_qb.py", "ops/rsvd/test_rsvd_factored.py", "ops/rsvd/test_rsvd_refusals.py"),
    ),
    (
        "ops/rsvd/",
        ("ops/rsvd/test_rsvd_refusals.py", "ops/rsvd/test_rsvd_reference.py", "ops/rsvd/test_rsvd_arguments.py"),
    ),
    ("ops/dct_select/", ("ops/dct_select", "ops/test_index_strides.py")),
    ("ops/chain_lr/matmul", ("ops/chain_lr/test_chain_lr_matmul.py",)),
    ("ops/chain_lr/linear", ("ops/chain_lr/test_chain_lr_linear.py",)),
    ("ops/chain_lr/pairs", ("ops/chain_lr/test_chain_lr_pairs.py",)),
    ("ops/chain_lr/", ("ops/chain_lr/test_chain_lr_chained.py", "ops/chain_lr/test_chain_lr_attention.py")),
    ("ops/subspace_step/step", ("ops/subspace_step/test_subspace_step_refusals.py", "optim/test_admission.py")),
    ("ops/subspace_step/lines", ("ops/subspace_step/test_subspace_step_lines.py",)),
    ("ops/subspace_step/", ("ops/subspace_step/test_subspace_step_refusals.py", "ops/subspace_step")),
    *((f"cli/study/{stem}", (f"cli/study/test_{stem}.py",)) for stem in ("intervals", "ladders", "published")),
    ("cli/study/stages", ("cli/study/test_stages.py", "cli/study/test_page.py")),
    ("cli/study/", ("cli/study",)),
    ("cli/finetune/", ("cli/finetune",)),
    ("cli/bench/products", ("cli/test_bench_products.py",)),
    ("cli/bench/", ("cli/test_bench.py", "cli/test_bench_peers.py")),
    ("cli/loop", ("cli/test_optimizers.py", "cli/test_growth.py", "cli/test_resume.py", "cli/test_methods.py")),
    ("cli/", ("cli/test_optimizers.py", "cli/test_methods.py")),
)
# Folder of the source, tests that then run: the neighbourhood, and what uses it.
THEN = (
    ("optim/", (("optim",), ("cli/test_methods.py", "cli/test_optimizers.py", "test_docs.py", "test_docstrings.py"))),
    ("memory/", (("optim/test_state_bytes.py", "cli/test_estimate.py", "optim/test_contract_state.py"),)),
    ("adapters/", (("adapters",), ("test_docs.py", "test_docstrings.py"))),
    *(
        (f"ops/{family}/", ((f"ops/{family}", "ops"), ("adapters" if family == "kalman_diag" else "optim",)))
        for family in ("rsvd", "subspace_step", "kalman_diag", "dct_select", "int4_project", "chain_lr")
    ),
    ("ops/", (("ops",), ("optim",))),
    ("cli/", (("cli",),)),
)
# Header, C++ tests, folders of Python tests.
HEADERS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "subspace_step": (("test_blockwise",), ("ops/subspace_step", "optim/test_golden.py", "optim/test_limiter.py")),
    "blockwise": (("test_blockwise",), ("ops/subspace_step", "optim/test_moment_dtypes.py")),
    "blocks": (("test_core", "test_blockwise"), ("ops/subspace_step", "ops/rsvd")),
    "rounding": (
        ("test_core", "test_blockwise", "test_int4_project", "test_half"),
        ("ops/subspace_step", "ops/int4_project"),
    ),
    "half": (("test_half", "test_core", "test_blockwise"), ("ops/subspace_step", "ops/int4_project")),
    "philox": (("test_core", "test_blockwise"), ("ops/subspace_step", "ops/rsvd/test_rsvd_sketch.py")),
    "simd/philox": (("test_core", "test_blockwise"), ("ops/subspace_step", "ops/rsvd/test_rsvd_sketch.py")),
    "kalman_diag": (("test_kalman_diag",), ("ops/kalman_diag",)),
    "chain_lr": (("test_chain_lr",), ("ops/chain_lr",)),
    "simd/exp": (("test_chain_lr",), ("ops/chain_lr",)),
    "dct_select": (("test_fft",), ("ops/dct_select",)),
    "angle": (("test_fft",), ("ops/dct_select",)),
    "simd/fft": (("test_fft",), ("ops/dct_select",)),
    "int4_project": (("test_int4_project",), ("ops/int4_project",)),
    "int4_project_address": (("test_int4_project",), ("ops/int4_project",)),
    "rsvd": ((), ("ops/rsvd", "ops/test_any_scale.py")),
    "rotation": (("test_dense", "test_scales"), ("ops/rsvd", "ops/test_any_scale.py")),
    "simd/rows": (("test_blockwise",), ("ops/dct_select", "ops/subspace_step")),
}
ANY_HEADER = (
    ("test_core", "test_gemm", "test_gemm_plugins", "test_dense"),
    ("ops/rsvd", "ops/subspace_step", "ops/int4_project"),
)
SLOW = (
    "_operators",
    "_memory",
    "_determinism",
    "_defects",
    "test_fork",
    "test_compile",
    "_without_kernels",
    "_order",
    "test_contract.py",
)  # run last
