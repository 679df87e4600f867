"""The pictures draw the values of the log, and can be read without colour."""

import dataclasses
import itertools
import sys

import numpy as np
import pytest
from logs import EDGES, MEAN, metrics, report, write_log

from sage_keras.analysis import (
    plot_distribution,
    plot_heat_map,
    plot_metric,
    plot_pruning_curves,
    plot_scale,
    read_log,
)

pytestmark = pytest.mark.backend_agnostic


@pytest.fixture
def log(tmp_path):
    return read_log(write_log(tmp_path, *(report(step) for step in (2, 4, 8))))


def line(axes, label):
    """The data of the line that the legend calls by a label."""
    legend = axes.get_legend()
    labels = [text.get_text() for text in legend.get_texts()]
    handle = legend.legend_handles[labels.index(label)]
    look = (handle.get_color(), handle.get_linestyle())
    [found] = [one for one in axes.lines if (one.get_color(), one.get_linestyle()) == look]
    return np.array(found.get_data())


def dashes(axes):
    return {(one._unscaled_dash_pattern, one.get_marker()) for one in axes.lines}


def test_distribution_has_the_area_of_the_parameters_above_zero(log):
    axes = plot_distribution(log)
    for drawn in axes.lines:
        centres, density = drawn.get_data()
        np.testing.assert_allclose(centres, np.sqrt(np.multiply(EDGES[:-1], EDGES[1:])))
        # Of 20 parameters 4 are zero, and 2, 4, 8 and 2 in the bins.
        shares = density * np.diff(np.log10(EDGES))
        np.testing.assert_allclose(shares, [0.1, 0.2, 0.4, 0.1])
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == [f"{step} (20.0% at zero)" for step in (2, 4, 8)]
    assert axes.get_xscale() == "log"
    assert len(dashes(axes)) == 3
    assert axes.lines[-1].get_linestyle() == "-"  # the last report


def test_distribution_draws_five_reports_from_first_to_last_or_those_asked_for(tmp_path):
    log = read_log(write_log(tmp_path, *map(report, range(1, 22))))
    names = [text.get_text().split()[0] for text in plot_distribution(log).get_legend().get_texts()]
    assert names == ["1", "6", "11", "16", "21"]
    axes = plot_distribution(log, steps=[3, 7])
    names = [text.get_text().split()[0] for text in axes.get_legend().get_texts()]
    assert names == ["3", "7"]
    with pytest.raises(ValueError, match=r"has 21 from 1 to 21. It has none at \[0, 99\]"):
        plot_distribution(log, steps=[3, 99, 0])


def test_distribution_leaves_thin_tails_out(log):
    counts = np.zeros((3, 40))
    counts[:, 30:32] = 1e6
    counts[:, 2] = 1
    edges = np.geomspace(1e-10, 1, 41)
    histogram = dataclasses.replace(log.model.histogram, edges=edges, counts=counts)
    log = dataclasses.replace(log, model=dataclasses.replace(log.model, histogram=histogram))
    low, high = plot_distribution(log).get_xlim()
    assert edges[28] < low < edges[30]
    assert edges[32] < high < edges[34]


def test_distribution_without_histograms_is_refused(tmp_path):
    plain = report(1)
    del plain["model"]["histogram"]
    with pytest.raises(ValueError, match="histograms=True"):
        plot_distribution(read_log(write_log(tmp_path, plain)))


def test_heat_map_shows_each_group_by_step_with_the_first_on_top(log):
    axes = plot_heat_map(log)
    mesh = axes.collections[0]
    steps = np.array([2, 4, 8])
    expected = MEAN * np.stack([steps, 2 * steps])
    np.testing.assert_allclose(mesh.get_array().reshape(2, 3), expected)
    np.testing.assert_allclose(mesh.get_coordinates()[0, :, 0], [1, 3, 6, 10])
    assert mesh.get_clim() == (MEAN * 2, MEAN * 16)
    np.testing.assert_allclose(mesh.norm(MEAN * np.array([2, 4, 16])), [0, 1 / 3, 1])
    assert [label.get_text() for label in axes.get_yticklabels()] == ["first", "second"]
    assert axes.yaxis_inverted()
    assert axes.get_title() == "Mean sensitivity by group"
    assert axes.figure.axes[1].get_ylabel() == "Mean sensitivity"  # of the colour bar


def test_heat_map_is_lighter_the_larger_the_value(log):
    mesh = plot_heat_map(log).collections[0]
    lightness = mesh.cmap(np.linspace(0, 1, 64))[:, :3] @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(lightness) > 0).all()


def test_heat_map_tells_zero_and_no_value_apart(log):
    log.groups["first"].values["mean"][1] = 0
    log.groups["second"].values["mean"][2] = np.nan
    axes = plot_heat_map(log)
    values, zeros = (mesh.get_array().reshape(2, 3) for mesh in axes.collections)
    assert values.mask.tolist() == [[False, True, False], [False, False, True]]
    assert (~zeros.mask).tolist() == [[False, True, False], [False] * 3]
    assert axes.patch.get_hatch()
    [legend] = axes.figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["zero", "no value"]
    assert plot_heat_map(log, "gini").figure.legends == []


def test_heat_map_of_other_values_is_linear_and_zero_is_a_value(log):
    log.groups["first"].values["redundant_share"][0] = 0
    mesh = plot_heat_map(log, "redundant_share").collections[0]
    assert mesh.get_array().reshape(2, 3).tolist() == [[0, 0.25, 0.25], [0.25] * 3]
    assert mesh.norm([0, 0.125, 0.25]).tolist() == [0, 0.5, 1]
    with pytest.raises(ValueError, match=r"no values 'q0\.5'. It has .*'mean'"):
        plot_heat_map(log, "q0.5")


def test_heat_map_without_groups_is_refused(tmp_path):
    log = read_log(write_log(tmp_path, report(1, groups=())))
    with pytest.raises(ValueError, match="no groups to draw"):
        plot_heat_map(log)


def test_the_largest_steps_are_drawn_in_their_order(tmp_path):
    log = read_log(write_log(tmp_path, *(report(step) for step in (2**62, 2**63 - 1))))
    edges = plot_heat_map(log).collections[0].get_coordinates()[0, :, 0]
    assert (np.diff(edges) > 0).all()


def test_heat_map_of_nothing_but_zeros_is_drawn(log):
    for group in log.groups.values():
        group.values["mean"][:] = 0
    plot_heat_map(log).figure.draw_without_rendering()


@pytest.mark.parametrize("count", [1, 36, 150, 400])
def test_heat_map_labels_do_not_overlap(tmp_path, count):
    names = [f"a_model_within/another_model/transformer_block_{n}/query_{n}" for n in range(count)]
    axes = plot_heat_map(read_log(write_log(tmp_path, report(5, groups=names))))
    axes.figure.draw_without_rendering()
    boxes = [label.get_window_extent() for label in axes.get_yticklabels()]
    assert all(upper.y0 >= lower.y1 - 1 for upper, lower in itertools.pairwise(boxes))
    assert boxes[0].x0 >= 0
    frame = axes.get_window_extent()
    assert frame.width > 150
    first = axes.get_yticklabels()[0].get_text()
    assert first == "a_model_within/…el/transformer_block_0/query_0"
    thinned = axes.get_ylabel()
    assert bool(thinned) == (count > 100)
    if thinned:
        every = int(thinned.split()[3])
        assert thinned == f"one name in {every} of {count} groups"
        assert len(boxes) == -(-count // every)


@pytest.mark.parametrize(
    "bias_correction, beta_3, bound",
    [
        # (0.75 - 0.75^t) / 0.25, and 0.75 / 0.25
        (True, 0.75, [1.0, 1.734375, 2.5995483398]),
        (False, 0.75, [3.0, 3.0, 3.0]),
        (True, 0.4, [1.0, 1.0, 1.0]),
    ],
)
def test_scale_and_its_bound(tmp_path, bias_correction, beta_3, bound):
    settings = {"bias_correction": bias_correction, "beta_3": beta_3}
    log = read_log(write_log(tmp_path, *(report(step, **settings) for step in (1, 4, 8))))
    axes = plot_scale(log)
    for label, expected in {"mean": [0.5] * 3, "maximum": [1.5] * 3, "bound": bound}.items():
        np.testing.assert_allclose(line(axes, label), [[1, 4, 8], expected], rtol=1e-9)
    [band] = axes.collections
    corners = band.get_paths()[0].vertices
    assert set(corners[:, 1]) == {0.1, 1.25}
    texts = [text.get_text() for text in axes.get_legend().get_texts()]
    assert "from 0.05 to 0.95 quantile" in texts
    assert axes.get_ylim() == pytest.approx((0, 1.05 * max(1.5, *bound)))  # no empty range
    assert len(dashes(axes)) == 3


def test_metric_of_training_and_validation_beside_the_sensitivity(tmp_path):
    lines = [
        report(2, mean=0.5),
        report(5, mean=0.25),
        metrics(6, loss=3.0, val_loss=2.5),
        report(9, mean=0.125),
        metrics(12, loss=2.0, val_loss=2.75, accuracy=0.5),
    ]
    lines[0]["metrics"] = {"loss": 4.0}
    log = read_log(write_log(tmp_path, *lines))
    axes = plot_metric(log)
    np.testing.assert_array_equal(line(axes, "loss"), [[2, 6, 12], [4, 3, 2]])
    np.testing.assert_array_equal(line(axes, "val_loss"), [[6, 12], [2.5, 2.75]])
    [left, right] = axes.figure.axes
    [drawn] = right.lines
    np.testing.assert_array_equal(drawn.get_data(), [[2, 5, 9], [0.5, 0.25, 0.125]])
    assert right.get_yscale() == "log"
    texts = [text.get_text() for text in axes.get_legend().get_texts()]
    assert texts == ["loss", "val_loss", "mean sensitivity"]
    assert len(dashes(left) | dashes(right)) == 3
    assert left.get_xticks().tolist() == [2, 6, 9, 12]
    assert plot_metric(log, "accuracy").get_title() == "accuracy"
    message = r"one of the metrics of the log, which are \['accuracy', 'loss', 'val_loss'\]"
    with pytest.raises(ValueError, match=message):
        plot_metric(log, "mae")
    with pytest.raises(ValueError, match=r"which are \[\]"):
        plot_metric(read_log(write_log(tmp_path, report(1))))


@pytest.mark.parametrize("plot", [plot_heat_map, plot_scale])
@pytest.mark.parametrize(
    ("steps", "ticks"),
    [
        ([3, 7, 11], [3, 7, 11]),
        ([7], [7]),
        ([*range(10, 1010, 10)], [*range(90, 1010, 130)]),
        ([1, 2, 3, 1000], [3, 1000]),  # the last of those that stand together
    ],
)
def test_ticks_are_at_reports(tmp_path, plot, steps, ticks):
    log = read_log(write_log(tmp_path, *map(report, steps)))
    axes = plot(log)
    assert axes.get_xticks().tolist() == ticks
    low, high = axes.get_xlim()
    apart = (steps[-1] - steps[0]) / 50 or 1
    beside = 0 if plot is plot_scale else max(np.diff(steps), default=1) / 2
    assert steps[0] - beside - apart <= low and high <= steps[-1] + beside + apart


def test_scale_takes_the_highest_bound_of_several_optimizers(tmp_path):
    two = report(3, beta_3=0.9, bias_correction=False)
    two["optimizers"].append({**two["optimizers"][0], "beta_3": 0.5})
    axes = plot_scale(read_log(write_log(tmp_path, two)))
    np.testing.assert_allclose(line(axes, "bound"), [[3], [9]])


def test_scale_has_gaps_where_a_report_has_none(tmp_path):
    gap = report(2, scale_mean=None, scale_max=None, **{"scale_q0.05": None, "scale_q0.95": None})
    axes = plot_scale(read_log(write_log(tmp_path, report(1), gap, report(3))))
    np.testing.assert_array_equal(line(axes, "mean"), [[1, 2, 3], [0.5, np.nan, 0.5]])
    axes.figure.draw_without_rendering()


def test_scale_that_was_not_logged_is_refused(tmp_path):
    plain = report(1)
    for name in [name for name in plain["model"]["values"] if name.startswith("scale")]:
        del plain["model"]["values"][name]
    with pytest.raises(ValueError, match=r"no values 'scale_mean'.*bfloat16"):
        plot_scale(read_log(write_log(tmp_path, plain)))


def test_pruning_curves_by_name():
    fractions = np.array([0.0, 0.25, 0.5])
    curves = {
        "one": {"fraction": fractions, "loss": np.array([1.0, 2.0, 4.0])},
        "costs $x$ and $": {"fraction": fractions, "loss": np.array([1.0, 1.5, 2.0])},
    }
    axes = plot_pruning_curves(curves)
    assert [text.get_text() for text in axes.get_legend().get_texts()] == list(curves)
    for drawn, curve in zip(axes.lines, curves.values()):
        np.testing.assert_array_equal(drawn.get_data(), [[0, 25, 50], curve["loss"]])
    assert len({drawn.get_marker() for drawn in axes.lines}) == 2
    assert len(dashes(axes)) == 2
    assert axes.get_ylabel() == "loss"
    axes.figure.draw_without_rendering()
    with pytest.raises(ValueError, match=r"called 'one' has \['loss'\]. Received: metric='auc'"):
        plot_pruning_curves(curves, "auc")
    with pytest.raises(ValueError, match="must not be empty"):
        plot_pruning_curves({})


def test_they_draw_on_given_axes_and_keep_no_figure_otherwise(log):
    from matplotlib import pyplot
    from matplotlib.figure import Figure

    figure = Figure()
    given = figure.subplots(3, 1)
    for plot, axes in zip((plot_distribution, plot_heat_map, plot_scale), given):
        assert plot(log, axes=axes) is axes
    assert plot_scale(log).figure is not figure
    assert pyplot.get_fignums() == []


def test_without_matplotlib_it_says_what_to_install(log, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"sage_keras\[analysis\]"):
        plot_scale(log)
