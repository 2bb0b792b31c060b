"""The page of an evaluation: figures beside their controls, then pictures, right and wrong ones marked."""

from collections.abc import Iterable, Sequence
from typing import Any

from ddt_apps.evaluation.answers import Answered
from ddt_apps.evaluation.captions import Captioned
from ddt_apps.evaluation.edits import Edited
from ddt_apps.evaluation.reconstruction import Reconstructed
from ddt_apps.evaluation.scenes import Judged
from ddt_apps.evaluation.scores import Scores
from ddt_apps.pages.chart import line_chart
from ddt_apps.pages.report import answers as answer_cards
from ddt_apps.pages.report import grid, note, pairs, report, section, strip, table

RIGHT, WRONG = "\u2713", "\u2717"
SHOWN = 8  # right and wrong pictures of each category


def page(scores: Scores, shown: Any, command: str) -> str:
    """Write the page of any benchmark: HTML that needs nothing else."""
    build = {
        "scenes": _scenes,
        "reconstruction": _reconstruction,
        "edits": _edits,
        "answers": _answers,
        "captions": _captions,
    }[scores.benchmark]
    intro, facts, sections = build(scores, shown)
    protocol = section(
        "Protocol",
        f"Id {scores.protocol_id}. Scores may be compared only where the id is the same.",
        table(["what", "value"], [[key, str(value)] for key, value in scores.protocol.items()]),
    )
    title = f"{scores.model.get('name', 'model')}: {scores.benchmark}"
    return report(title, intro, [*sections, protocol], facts | {"protocol": scores.protocol_id}, foot=command)


def rows_of_scenes(scores: Scores) -> tuple[list[str], list[list[str]]]:
    """The table of SceneEval: the model and every control, by category."""
    categories = list(scores.scores["categories"])
    header = ["percent right", *categories, "Overall"]

    def row(name: str, figures: dict[str, Any], column: str = "all") -> list[str]:
        cells = [figures["categories"][c].get(column) for c in categories]
        overall = figures["overall_by_split"].get(column)
        return [name, *("-" if cell is None else f"{cell:.1f}" for cell in [*cells, overall])]

    rows = [row(f"model, {column}", scores.scores, column) for column in ("all", "seen", "unseen")]
    names = {
        "shuffled_prompts": "other prompts (chance)",
        "tokenizer": "real scenes through the tokenizer (its ceiling)",
        "real": "real scenes (the judge's ceiling)",
        "real_second_judge": "real scenes, second judge",
    }
    return header, rows + [row(text, scores.controls[key]) for key, text in names.items() if key in scores.controls]


def _scenes(scores: Scores, shown: Judged) -> tuple[str, dict[str, str], list[tuple[str, str]]]:
    figures, controls = scores.scores, scores.controls
    header, rows = rows_of_scenes(scores)
    agree = controls["judges_agree"]
    more = [
        ["prompts with a right picture among theirs, %", f"{figures['best_of_pictures']:.1f}"],
        ["Overall by the second judge", f"{figures['second_judge_overall']:.1f}"],
        ["judges agree on drawn pictures, on real ones, %", f"{agree['drawn']:.1f}, {agree['real']:.1f}"],
    ]
    if figures["count_error"] is not None:
        more.append(["mean count error, counting prompts", f"{figures['count_error']:.2f}"])
    sections = [
        section(
            "In figures",
            "Strict: exactly the things asked for, nothing else, in the colours, sizes and places asked for. Unseen: "
            "combinations that training never shows. The judge sees this vocabulary only, so figures compare models "
            "trained on these scenes with one another, never with published GenEval figures.",
            table(header, rows),
            table(["also", "value"], more),
        )
    ]
    if len(prefixes := controls.get("tokenizer_prefixes", {})) > 1:
        curve = [float(n) for n in prefixes], list(prefixes.values())
        sections.append(
            section(
                "What the tokenizer keeps",
                "Overall of real scenes drawn again from their n coarsest ids; no model does better with it.",
                line_chart({"ceiling": curve}, "ids kept, from the coarse end", "% right", markers=True),
            )
        )
    for category in figures["categories"]:
        rows_here = [i for i, prompt in enumerate(shown.prompts) if prompt.category == category]
        for right, title in ((True, "right"), (False, "wrong")):
            some = _spread([i for i in rows_here if shown.verdicts[i].right == right])
            if some:
                cells = [
                    (shown.pictures[i], f"{_mark(right)} {shown.prompts[i].text}{_because(shown.verdicts[i].why)}")
                    for i in some
                ]
                sections.append(section(f"{category}: {title}", "", grid(cells)))
    if controls["real"]["overall"] < 97:
        sections.insert(1, section("Careful", "", note("The judge is right on fewer than 97 % of real scenes here.")))
    facts = {
        "Overall, % right": f"{figures['overall']:.1f} \u00b1 {figures['standard_error']:.1f}",
        "ceiling of the tokenizer": f"{controls['tokenizer']['overall']:.1f}" if "tokenizer" in controls else "-",
        "chance": f"{controls['shuffled_prompts']['overall']:.1f}",
    }
    intro = f"SceneEval, level {scores.protocol['level']}: {len(shown.prompts)} pictures drawn from fixed prompts."
    return intro, facts, sections


def _reconstruction(scores: Scores, shown: Reconstructed) -> tuple[str, dict[str, str], list[tuple[str, str]]]:
    figures, controls = scores.scores, scores.controls
    rows = [[name, f"{value:.4g}"] for name, value in figures.items()]
    rows.append(["psnr of the mean picture (baseline)", f"{controls['mean_picture']['psnr']:.4g}"])
    order = sorted(range(len(shown.psnr)), key=lambda i: shown.psnr[i])
    some = [order[round(share * (len(order) - 1))] for share in (0, 0.25, 0.5, 0.75, 1)]
    sections = [
        section(
            "In figures",
            "eff_fid, r_eff_lpips and cvs_like are substitutes on EfficientNet-Lite0.",
            table(["figure", "value"], rows),
        ),
        section(
            "From the worst to the best",
            "Originals, what their ids alone give, and drawings from the coarsest ids.",
            strip(
                [
                    [
                        (shown.originals[i], "original"),
                        (shown.drawn[i], f"{shown.psnr[i]:.1f} dB"),
                        *((pictures[i], f"{n} ids") for n, pictures in shown.prefixes.items()),
                    ]
                    for i in some
                ]
            ),
        ),
    ]
    if len(controls["psnr_from_coarsest"]) > 1:
        curve = [float(n) for n in controls["psnr_from_coarsest"]], list(controls["psnr_from_coarsest"].values())
        chart = line_chart({"PSNR": curve}, "ids kept, from the coarse end", "dB", markers=True)
        sections.append(section("Prefixes", "", chart))
    facts = {
        "PSNR, dB": f"{figures['psnr']:.2f}",
        "SSIM": f"{figures['ssim']:.3f}",
        "ids and bits an image": f"{figures['tokens']}, {figures['bits_per_image']:.0f}",
    }
    return f"{len(shown.psnr)} pictures to ids and back; {scores.protocol['data']}.", facts, sections


def _edits(scores: Scores, shown: Edited) -> tuple[str, dict[str, str], list[tuple[str, str]]]:
    rivals = {
        "model": scores.scores,
        "leaving it as it is": scores.controls["copy_input"],
        "drawing the target's caption anew": scores.controls.get("draw_target_caption"),
        "the exact target through the tokenizer": scores.controls.get("tokenizer"),
        "the exact target (the judge's ceiling)": scores.controls["exact_target"],
    }
    columns = ("success", "l1")
    rows = [
        [
            name,
            *(f"{figures[c].get(s, float('nan')):.1f}" for c in columns for s in ("all", "seen", "unseen")),
            f"{figures['l1_outside']:.2f}",
        ]
        for name, figures in rivals.items()
        if figures
    ]
    header = ["", "success %", "seen", "unseen", "L1", "seen", "unseen", "L1 outside"]
    kinds = [
        [kind, f["count"], f["success"], f["l1"], scores.controls["copy_input"]["kinds"][kind]["l1"]]
        for kind, f in scores.scores["kinds"].items()
    ]
    cells = [
        (
            shown.sources[i],
            f"{_mark(shown.verdicts[i].right)} {e.instruction}{_because(shown.verdicts[i].why)}",
            shown.drawn[i],
            shown.targets[i],
        )
        for i, e in enumerate(shown.edits[:24])
    ]
    sections = [
        section(
            "In figures",
            "Success: the judge sees the target scene. L1 to the exact target, in percent of the range. L1 outside: to "
            "the source, beyond the boxes of what the edit changes.",
            table(header, rows),
            table(["kind", "edits", "success %", "L1", "L1 of leaving it"], kinds),
        ),
        section("Edits", "", pairs(cells)),
    ]
    facts = {"success": f"{scores.scores['success']['all']:.1f} %", "L1": f"{scores.scores['l1']['all']:.2f}"}
    return f"{len(shown.edits)} edits of held-out scenes whose exact result is known.", facts, sections


def _answers(scores: Scores, shown: Answered) -> tuple[str, dict[str, str], list[tuple[str, str]]]:
    blind, elsewhere = scores.controls["frequent_answer"], scores.controls["another_picture"]
    rows = [
        [kind, f["count"], f["accuracy"], blind["kinds"][kind]["accuracy"], elsewhere["kinds"][kind]["accuracy"]]
        for kind, f in scores.scores["kinds"].items()
    ]
    total = [figures["accuracy"]["all"] for figures in (scores.scores, blind, elsewhere)]
    rows.append(["all", len(shown.questions), *total])
    cards = [
        (picture, [(question.question, answer, question.answer)])
        for picture, question, answer in list(zip(shown.pictures, shown.questions, shown.answers, strict=True))[:36]
    ]
    header = ["kind", "questions", "model %", "most frequent answer %", "model with another picture %"]
    sections = [
        section("In figures", "Exact matches.", table(header, rows)),
        section("Answers", "", answer_cards(cards)),
    ]
    facts = {"right": f"{total[0]:.1f} %", "without looking": f"{max(total[1:]):.1f} %"}
    return f"{len(shown.questions)} questions about held-out scenes.", facts, sections


def _captions(scores: Scores, shown: Captioned) -> tuple[str, dict[str, str], list[tuple[str, str]]]:
    rivals = {
        "model": scores.scores,
        "another scene's description (chance)": scores.controls["of_another_picture"],
        "true captions (ceiling)": scores.controls["true_captions"],
    }
    names = ("nouns_f1", "counts_f1", "colours_f1", "relations_f1", "backgrounds_right")
    rows = [
        [
            name,
            *(f"{f['exact'][split]:.1f}" for split in ("all", "seen", "unseen")),
            *("-" if f[figure] is None else f"{f[figure]:.1f}" for figure in names),
        ]
        for name, f in rivals.items()
    ]
    header = ["%", "exact", "seen", "unseen", *(name.replace("_", " ") for name in names)]
    sections = [section("In figures", "Descriptions parsed back to what they say.", table(header, rows))]
    for right, title in ((True, "Right"), (False, "Wrong")):
        some = _spread([i for i, r in enumerate(shown.right) if r == right], 16)
        cells = [
            (
                shown.pictures[i],
                f"{_mark(right)} {shown.captions[i]}" + ("" if right else f" \u2014 true: {shown.truths[i]}"),
            )
            for i in some
        ]
        if cells:
            sections.append(section(title, "", grid(cells)))
    facts = {"exact": f"{scores.scores['exact']['all']:.1f} %", "nouns F1": f"{scores.scores['nouns_f1']:.1f}"}
    return f"{len(shown.captions)} held-out scenes described.", facts, sections


def _mark(right: bool) -> str:
    return RIGHT if right else WRONG


def _because(why: str) -> str:
    return f" \u2014 {why}" if why else ""


def _spread(rows: Sequence[int] | Iterable[int], count: int = SHOWN) -> list[int]:
    """At most `count` of the rows, evenly spread."""
    rows = list(rows)
    return rows if len(rows) <= count else [rows[i * len(rows) // count] for i in range(count)]
