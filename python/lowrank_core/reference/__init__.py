"""The families in float64 and plain torch: obvious, differentiable, slow. For tests and benches only; needs torch."""
