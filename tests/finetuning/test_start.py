"""Labels and channels are matched by name, and the table says what becomes of each."""

import pytest

from volseg.errors import UsageError
from volseg.finetuning.start import Match, Start, match_channels, match_labels

MODEL = ["Anterior", "Posterior"]


def table(labels, channels=None, **changes):
    channels = channels or Match(taken={"MRI": "MRI"})
    values = {"name": "m", "sha256": 64 * "a", "labels": labels, "channels": channels, **changes}
    return Start(**values).table()


def test_labels_are_matched_by_name_whatever_their_order():
    match = match_labels(["Posterior", "Tail", "Anterior"], MODEL, {}, keep=False)
    assert match.taken == {"Posterior": "Posterior", "Tail": None, "Anterior": "Anterior"}
    assert (match.new, match.dropped, match.kept) == (["Tail"], (), ())


def test_what_the_dataset_lacks_is_dropped_or_kept():
    assert match_labels(["Tail", "Anterior"], MODEL, {}, keep=False).dropped == ("Posterior",)
    kept = match_labels(["Tail", "Anterior"], MODEL, {}, keep=True)
    assert (kept.dropped, kept.kept) == ((), ("Posterior",))


def test_the_label_map_joins_names_that_differ():
    match = match_labels(["anterior", "Whole"], MODEL, {"anterior": "Anterior", "Whole": "Posterior"}, keep=False)
    assert match.taken == {"anterior": "Anterior", "Whole": "Posterior"}
    assert match.dropped == ()


def test_the_label_map_may_exchange_names():
    match = match_labels(MODEL, MODEL, {"Anterior": "Posterior", "Posterior": "Anterior"}, keep=True)
    assert match.copied == {"Anterior": "Posterior", "Posterior": "Anterior"}


@pytest.mark.parametrize(
    ("label_map", "message"),
    [
        ({"Tail": "Anterior"}, "The label map names 'Tail', but the labels of the dataset are Anterior, Head."),
        ({"Head": "Tail"}, "The label map names 'Tail', but the labels of the model are Anterior, Posterior."),
    ],
)
def test_a_label_map_of_unknown_names_is_refused(label_map, message):
    with pytest.raises(UsageError) as error:
        match_labels(["Anterior", "Head"], MODEL, label_map, keep=False)
    assert str(error.value).startswith(message)
    assert "NEW=OLD, the name in the dataset and that in the model" in str(error.value)


def test_a_name_with_two_meanings_cannot_be_kept():
    with pytest.raises(UsageError, match="gives Posterior another meaning, so the model's cannot be kept"):
        match_labels(["Posterior"], MODEL, {"Posterior": "Anterior"}, keep=True)


def test_a_near_match_and_no_match_are_warned_of():
    channels = Match(taken={"MRI": "MRI"})

    def warnings(names, keep=False):
        labels = match_labels(names, MODEL, {}, keep)
        return Start(name="m", sha256=64 * "a", labels=labels, channels=channels).warnings()

    assert warnings(["Posterior", "Tail"]) == []
    (near,) = warnings(["posterior", "Anterior"])
    assert "'posterior' (the model has 'Posterior')" in near
    assert "--label-map NEW=OLD" in near
    assert len(warnings(["posterior", "Tail"])) == 2
    assert warnings(["Tail"]) == [
        "No label of the model is taken over, because none has the name of one in the dataset."
    ]
    assert warnings(["Tail"], keep=True) == []


def test_channels_that_only_nearly_match_or_not_at_all_are_warned_of():
    """Their weights are a mean, which the table alone does not make anyone stop for."""
    labels = match_labels(MODEL, MODEL, {}, keep=False)

    def warnings(names, known):
        return Start(name="m", sha256=64 * "a", labels=labels, channels=match_channels(names, known)).warnings()

    assert warnings(["T1", "CT"], ["T1", "FLAIR"]) == warnings(["image"], ["MRI"]) == []
    (near,) = warnings(["flair", "T1"], ["T1", "FLAIR"])
    assert "start from the mean of its others: 'flair' (the model has 'FLAIR')" in near
    assert len(warnings(["flair", "t1"], ["T1", "FLAIR"])) == 2
    (none,) = warnings(["ADC", "DWI"], ["T1", "FLAIR"])
    assert none == "No channel of the model is taken over, because none has the name of one in the dataset."


def test_the_table_says_that_the_encoder_is_frozen():
    labels = match_labels(MODEL, MODEL, {}, keep=False)
    start = Start(name="m", sha256=64 * "a", labels=labels, channels=Match(taken={"MRI": "MRI"}))
    assert "--freeze encoder" in start.table(freeze=True)[0]
    assert "freeze" not in "".join(start.table())


def test_channels_are_matched_by_name_and_a_single_one_with_a_single_one():
    assert match_channels(["T2", "T1"], ["T1", "FLAIR"]) == Match(taken={"T2": None, "T1": "T1"}, dropped=("FLAIR",))
    assert match_channels(["image"], ["MRI"]) == Match(taken={"image": "MRI"})


def test_the_table_names_every_label_and_channel_once():
    labels = match_labels(["anterior", "Tail", "Posterior"], [*MODEL, "Body"], {}, keep=False)
    channels = match_channels(["T1", "T2"], ["T1", "CT"])
    assert table(labels, channels, member=2, notes=("spacing kept",)) == [
        "Starting from m, member 2 (sha256 aaaaaaaaaaaa...):",
        "  label    anterior   new; the model has 'Anterior', which --label-map 'anterior=Anterior' joins to it",
        "  label    Tail       new",
        "  label    Posterior  copied",
        "  label    Anterior   dropped, the dataset has no such label",
        "  label    Body       dropped, the dataset has no such label",
        "  channel  T1         copied",
        "  channel  T2         new, its weights are the mean of those of the others",
        "  channel  CT         dropped, the dataset has no such channel",
        "  spacing kept",
    ]


def test_the_record_of_a_card_has_the_whole_ancestry_the_youngest_first():
    earlier = ({"name": "grandmother", "sha256": 64 * "b"},)
    labels = match_labels(["Anterior", "Tail"], MODEL, {}, keep=True)
    start = Start(name="m", sha256=64 * "a", labels=labels, channels=Match(taken={"x": "y"}), earlier=earlier)
    assert start.record() == [
        {
            "name": "m",
            "sha256": 64 * "a",
            "labels": {"copied": {"Anterior": "Anterior"}, "new": ["Tail"], "kept": ["Posterior"]},
            "channels": {"copied": {"x": "y"}},
        },
        *earlier,
    ]


def test_a_channel_whose_name_differs_in_case_is_pointed_out():
    channels = match_channels(["mri", "T2"], ["MRI", "T2"])
    lines = table(match_labels(MODEL, MODEL, {}, keep=False), channels)
    (line,) = (line for line in lines if line.startswith("  channel  mri "))
    assert line.endswith("  new; the model has 'MRI': where both are the same, give it that name in the dataset")


def test_keeping_labels_that_the_dataset_has_itself_is_pointed_out(caplog):
    assert match_labels([*MODEL, "new"], MODEL, {}, keep=True).kept == ()
    assert "The dataset has all labels of the model (Anterior, Posterior), so there is none to keep" in caplog.text
    caplog.clear()
    assert match_labels(MODEL[:1], MODEL, {}, keep=True).kept == tuple(MODEL[1:])
    assert not caplog.text
