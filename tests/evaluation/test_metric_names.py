"""The names of metrics in results."""

import pytest

from ddpm_jax.evaluation import EvaluationError, metric_name

GENERAL = {"FID": "Frechet distance", "KID": "kernel distance", "IS": "classifier score"}
RESIZED = "Inception-v3, clean-fid's resize"


@pytest.mark.parametrize(
    ("metric", "samples", "others", "name"),
    [
        ("FID", 50_000, {}, "FID"),
        ("FID", 60_000, {}, "FID"),
        ("FID", 49_999, {}, "FID-49999"),
        ("FID", 10_000, {}, "FID-10k"),
        ("FID", 5_000, {}, "FID-5k"),
        ("FID", 1_234, {}, "FID-1234"),
        ("FID", 50_000, {"full_reference": False}, "FID-50k, part of the reference"),
        ("FID", 50_000, {"network": "digits classifier"}, "Frechet distance, digits classifier"),
        ("FID", 50_000, {"network": RESIZED}, "FID, clean-fid's resize"),
        ("FID", 10_000, {"network": RESIZED}, "FID-10k, clean-fid's resize"),
        ("recall", 50_000, {"network": RESIZED}, "recall, Inception-v3, clean-fid's resize"),
        (
            *("FID", 10_000, {"network": "Inception-v3, weights 1a2b3c4d"}),
            "Frechet distance, Inception-v3, weights 1a2b3c4d, 10k samples",
        ),
        ("KID", 5_000, {}, "KID-5k"),
        ("IS", 50_000, {}, "IS"),
        ("precision", 50_000, {}, "precision, Inception-v3"),
        ("recall", 10_000, {}, "recall, Inception-v3, 10k samples"),
        ("recall", 1, {"network": "VGG-16"}, "recall, VGG-16, 1 sample"),
        ("IS", 360, {"network": "digits"}, "classifier score, digits, 360 samples"),
        (
            *("KID", 2_000, {"network": "digits", "full_reference": False}),
            "kernel distance, digits, 2k samples, part of the reference",
        ),
    ],
)
def test_a_number_has_the_name_it_may_have(metric, samples, others, name):
    assert metric_name(metric, GENERAL.get(metric), samples=samples, **others) == name


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"name": "FID", "samples": 0}, "samples is 0"),
        ({"name": "FID", "samples": 1, "network": " "}, "network is ' '"),
        ({"name": "", "samples": 1}, "name is ''"),
    ],
)
def test_what_is_refused(arguments, sentence):
    with pytest.raises(EvaluationError, match=sentence):
        metric_name(**arguments)
