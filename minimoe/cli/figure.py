"""A report as a picture: who went where, the paper's way and yours."""
import matplotlib
import numpy as np
from matplotlib.figure import Figure

DROPPED, KEPT, PAPER = "#d95f02", "#1b9e77", "#7570b3"
MOST_TOKENS = 48


def draw(report, path):
    """Draw a report to a file: its routing where it has one, and every intermediate's error.

    OSError where the file cannot be written, ValueError where its ending names no format.
    """
    routed = _routing(report)
    tall = 1.2 + 0.24 * max(len(_given(report)), 8)
    figure = Figure(figsize=(13 if routed else 7, tall), layout="constrained")
    axes = figure.subplots(1, 2 if routed else 1, squeeze=False,
                           width_ratios=[3, 2] if routed else [1])[0]
    if routed:
        _draw_routing(axes[0], *routed)
    _draw_errors(axes[-1], report)
    first = report.first_divergence
    verdict = ("agrees" if report.ok else f"first divergence: {first.name}, {first.where}" if first
               else "nothing to compare")
    figure.suptitle(f"{report.case.id} in {report.dtype}: {verdict}")
    with matplotlib.rc_context({"svg.hashsalt": "minimoe"}):
        figure.savefig(path, dpi=120)


# -- Who went where ------------------------------------------------------------------------------

def _routing(report):
    """Experts and what was kept, the paper's and the user's, [T, K] each; None without a routing.

    Where a user gives one of the two alone, the paper's stands in for the other.
    """
    prefix = next((name.removesuffix("expert_index") for name in report.want
                   if name.endswith("expert_index")), None)
    if prefix is None or report.want[prefix + "expert_index"].ndim != 2:
        return None
    names = [prefix + "expert_index", prefix + "keep"]
    if not any(name in report.got for name in names):
        return None
    expert, keep = (report.want.get(name) for name in names)
    keep = np.ones(expert.shape, bool) if keep is None or keep.shape != expert.shape else keep
    return expert, keep, report.got.get(names[0], expert), report.got.get(names[1], keep)


def _draw_routing(axes, expert, keep, yours, kept):
    T, K = expert.shape
    shown = min(T, MOST_TOKENS)
    for k in range(K):
        for t in range(shown):
            y = t + (k - (K - 1) / 2) * 0.3
            same = expert[t, k] == yours[t, k] and keep[t, k] == kept[t, k]
            axes.plot(expert[t, k], y, "o", ms=8, mec=PAPER, mew=1.2,
                      mfc=PAPER if keep[t, k] else "none")
            if not same:
                axes.plot(yours[t, k], y, "X" if kept[t, k] else "x", ms=9, color=DROPPED,
                          mew=1.5)
                axes.axhspan(t - 0.5, t + 0.5, color=DROPPED, alpha=0.12, lw=0)
    axes.set(xlabel="expert", ylabel="token", ylim=(shown - 0.5, -0.5),
             title="The paper: filled, kept; hollow, turned away.\n"
                   "Yours where it differs: bold cross, kept; thin cross, turned away")
    axes.xaxis.get_major_locator().set_params(integer=True)
    if T > shown:
        axes.annotate(f"the first {shown} of {T} tokens", (0, 0), (4, 4), "axes fraction",
                      "offset points")


# -- Errors --------------------------------------------------------------------------------------

def _given(report):
    return [finding for finding in report.findings if finding.status != "not given"]


def _draw_errors(axes, report):
    colors = {"agrees": KEPT, "differs": DROPPED, "follows": "#bbbbbb", "undetermined": "#e6c200"}
    found = _given(report)
    for row, finding in enumerate(found):
        if finding.error is None:
            share = finding.places / max(finding.size, 1)
            text, length = (("equal", 0.0) if not finding.places else
                            (f"{finding.places} of {finding.size} differ", 1.0 + 17 * share))
        else:
            text, length = f"{finding.error:.2g} eps", np.log10(1 + min(finding.error, 1e18))
            if finding.status == "agrees":
                axes.plot([np.log10(1 + finding.tolerance)] * 2, [row - 0.4, row + 0.4], "k", lw=1)
        axes.barh(row, length, color=colors.get(finding.status, "#bbbbbb"))
        axes.annotate(text, (length, row), (3, 0), textcoords="offset points", va="center",
                      fontsize=8)
    axes.set_yticks(range(len(found)), [finding.name for finding in found], fontsize=8)
    axes.set(ylim=(len(found) - 0.4, -0.6), xlim=(0, 23), xticks=[],
             title="Errors, longer is larger (line: what is let pass)\n"
                   "green agrees, orange differs, grey follows from it")
