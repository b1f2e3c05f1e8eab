"""A Kalman filter with a diagonal covariance."""

from lowrank_core.ops.kalman_diag.filter import KalmanStep, kalman_diag_gain, kalman_diag_step, kalman_diag_step_

__all__ = [
    "KalmanStep",
    "kalman_diag_gain",
    "kalman_diag_step",
    "kalman_diag_step_",
]
