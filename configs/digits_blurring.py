"""TODO

    ddpm-jax train configs/digits_blurring.py
"""

from ddpm_jax.config import (
    Config,
    DataConfig,
    EvaluationConfig,
    ModelConfig,
    OptimizerConfig,
    ProcessConfig,
    ScheduleConfig,
    TrainConfig,
)


def get_config() -> Config:
    """The settings of configs/digits.py, but for the process."""
    return Config(
        data=DataConfig(name="digits"),
        schedule=ScheduleConfig(
            name="linear_log_snr", num_steps=250, log_snr_max=7.0, log_snr_min=-8.0
        ),
        process=ProcessConfig(name="blurring", max_blur=2.0, min_scale=1e-3),
        model=ModelConfig(
            channels=16,
            multipliers=(1, 2),
            num_blocks=1,
            attention_resolutions=(4,),
            dropout=0.0,
            norm_groups=8,
        ),
        optimizer=OptimizerConfig(learning_rate=3e-3, warmup_steps=100, decay="cosine", b2=0.99),
        train=TrainConfig(
            steps=2500,
            batch_size=64,
            objective="elbo",
            times="stratified",
            ema_decay=0.995,
            log_every=50,
            save_every=250,
            draw_every=1250,
        ),
        evaluation=EvaluationConfig(batch_size=120, num_samples=64),
        workdir="runs/digits_blurring",
    )
