"""Groups by a column of samples; oracle: the same patients scored by scikit-learn, and counting by hand."""

from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score

from vitreous.core.label_sets import encode_label_sets
from vitreous.core.predictions import Predictions
from vitreous.core.undefined import Undefined
from vitreous.evidence.intervals import resample_weights
from vitreous.evidence.one_vs_rest import binary_of
from vitreous.evidence.sample_groups import column_groups, group_numbers

CLASSES = ("a", "b")


def two_devices(patients=60, seed=0):
    """Each patient on two devices; the second one is noise."""
    rng = np.random.default_rng(seed)
    y_P = np.arange(patients) % 2
    y_N, ids_N = np.repeat(y_P, 2), np.repeat([f"p{n:02d}" for n in range(patients)], 2)
    logits_NC = rng.normal(size=(2 * patients, 2))
    logits_NC[::2] += 3 * np.eye(2)[y_P]
    samples_N = np.array([f"{name}/{n % 2}" for n, name in enumerate(ids_N)])
    return Predictions(samples_N, ids_N, y_N, logits_NC, CLASSES)


def weights_of(predictions, resamples=200):
    ids = np.unique(predictions.patient_id_N)
    weights_RP = resample_weights(ids, num_resamples=resamples, rng=np.random.default_rng(0))
    return {name: weights_RP[:, n] for n, name in enumerate(ids.tolist())}


def test_a_patient_is_scored_on_each_device_by_itself():
    one = two_devices()
    device_of = {name: f"device {name[-1]}" for name in one.sample_id_N.tolist()}
    found = column_groups(
        [one], "device", device_of, weights_of(one), ["balanced_accuracy"], aggregate="mean_probability"
    )
    assert [group.name for group in found.groups] == ["device 0", "device 1"]
    for k, group in enumerate(found.groups):
        expected = balanced_accuracy_score(one.y_true_N[k::2], one.scores_NC[k::2].argmax(axis=1))
        assert group.num_patients == 60
        assert group.metrics["balanced_accuracy"].value == pytest.approx(expected, abs=1e-12)
    assert found.groups[0].metrics["balanced_accuracy"].low > found.groups[1].metrics["balanced_accuracy"].high


def test_one_small_group_alone_is_joined_so_that_subtraction_does_not_show_it():
    one = two_devices()
    number = {name: int(name[1:3]) for name in one.sample_id_N.tolist()}
    site_of = {name: "tiny" if n < 6 else "north" if n < 30 else "south" for name, n in number.items()}
    found = column_groups([one], "site", site_of, weights_of(one), ["accuracy"], aggregate="mean_probability")
    assert found.joined == ("north or tiny",)
    assert {group.name: group.num_patients for group in found.groups} == {"north or tiny": 30, "south": 30}
    two = {name: "tiny" if n < 6 else "small" if n < 12 else "south" for name, n in number.items()}
    hidden = column_groups([one], "site", two, weights_of(one), ["accuracy"], aggregate="mean_probability")
    assert hidden.joined == ()
    assert [isinstance(group.num_patients, Undefined) for group in hidden.groups] == [True, False, True]


def test_numbers_become_three_parts_and_too_many_texts_no_groups():
    ages = [str(age) for age in range(30, 90)]
    names = group_numbers(ages)
    assert [names.count(name) for name in dict.fromkeys(names)] == [20, 20, 20]
    assert names[0].startswith("below 49.")
    assert group_numbers(["1", "2", "1"]) == ["1", "2", "1"]
    assert group_numbers([*ages, ""])[-1] == ""
    one = two_devices()
    rows = {name: name for name in one.sample_id_N.tolist()}
    found = column_groups([one], "row", rows, weights_of(one), ["accuracy"], aggregate="mean_probability")
    assert found.groups == Undefined("120 values: more than 50")


def test_a_label_by_itself_keeps_its_probabilities():
    rng = np.random.default_rng(1)
    has_NL = rng.random((20, 3)) < 0.4
    ids = np.array([f"p{n}" for n in range(20)])
    labels = Predictions(ids, ids, encode_label_sets(has_NL), rng.normal(size=(20, 3)), ("x", "y", "z"),
                         task="multi_label")  # fmt: skip
    for rows in (labels, labels.per_patient()):
        alone = binary_of(rows, "y")
        order = np.argsort(rows.sample_id_N)
        assert alone.classes == ("not y", "y")
        assert np.allclose(alone.probs_NC[:, 1], rows.probs_NC[:, 1], atol=1e-15)
        assert np.array_equal(alone.y_true_N[order], has_NL[np.argsort(ids), 1])
    with pytest.raises(ValueError, match="no label 'q'"):
        binary_of(labels, "q")
    with pytest.raises(ValueError, match="multi_class"):
        binary_of(replace(labels, task="multi_class"), "y")
