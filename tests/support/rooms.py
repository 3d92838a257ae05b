"""The rooms of the house, from the ground up: each imports only from those before it."""

CORE = (
    "errors",
    "checks",
    "arrays",
    "compiled",
    "bases",
    "schedules",
    "gaussians",
    "processes",
    "forward",
    "reverse",
    "timesteps",
    "losses",
    "likelihood",
    "samplers",
    "analytic",
    "litmus",
)
ROOMS = (
    *CORE,
    *(
        "files",
        "npz",
        "terminal",
        "models",
        "weights",
        "parallel",
        "training",
        "data",
        "evaluation",
        "config",
        "experiment",
        "comparison",
        "plan",
        "cli",
    ),
)
