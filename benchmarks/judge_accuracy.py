"""How far the judges of SceneEval can be trusted: on fresh scenes, clean and damaged, with right and wrong prompts.

python benchmarks/judge_accuracy.py [--scenes 2000] [--level standard]
"""

import argparse
import random
import runpy
from operator import itemgetter
from pathlib import Path

import numpy as np
from pairs import cpu_seconds
from rich.progress import track

from ddt_data import Judge, render
from ddt_data.sceneeval.judge import JUDGES
from ddt_data.sceneeval.prompts import canvas_of, contradict, level_config, load_prompts, scene_for
from ddt_data.sceneeval.verdicts import verdict

SCRIPT = Path(__file__).parent.parent / "packages" / "ddt-data" / "scripts" / "damage.py"
LEVELS, damage = itemgetter("LEVELS", "damage")(runpy.run_path(str(SCRIPT)))
FIRST_SEED = 1_000_000  # scenes that no training and no evaluation draws
WRONG = ("noun", "count", "colour", "relation", "size")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=2000, help="scenes a category")
    parser.add_argument("--level", default="standard", help="tiny, standard or hard")
    parser.add_argument("--judges", nargs="+", default=list(JUDGES), help="embedded ones, or files")
    args = parser.parse_args()
    config, canvas = level_config(args.level), canvas_of(args.level)
    judges = {name: Judge.from_pretrained(name) for name in args.judges}
    prompts = load_prompts(args.level)
    categories = list(dict.fromkeys(prompt.category for prompt in prompts))
    right = {(name, level, c): 0.0 for name in judges for level in LEVELS for c in categories}
    accepted = {(name, kind): [0, 0] for name in judges for kind in WRONG}
    agreed = dict.fromkeys(LEVELS, 0.0)
    reasons: dict[str, dict[str, int]] = {name: {} for name in judges}
    read, seconds = 0, 0.0
    for category in track(categories, "judging"):
        of_category = [prompt for prompt in prompts if prompt.category == category]
        shown = [of_category[i % len(of_category)] for i in range(args.scenes)]
        clean = np.stack([render(scene_for(p, config, FIRST_SEED + i), config) for i, p in enumerate(shown)])
        for level in LEVELS:
            rng = np.random.default_rng(0)
            pictures = np.concatenate(
                [damage(part, level, rng) for part in np.array_split(clean, args.scenes // 8 + 1)]
            )
            verdicts = {}
            for name, judge in judges.items():
                started = cpu_seconds()
                seen = judge.read(pictures, canvas)
                seconds += cpu_seconds() - started
                read += len(pictures)
                verdicts[name] = [verdict(p, things) for p, things in zip(shown, seen, strict=True)]
                right[name, level, category] = np.mean([v.right for v in verdicts[name]])
                if level != "none":
                    continue
                for v in verdicts[name]:
                    if not v.right:
                        reasons[name][v.why] = reasons[name].get(v.why, 0) + 1
                draw = random.Random(0)
                for prompt, things in zip(shown, seen, strict=True):
                    for kind in WRONG:
                        if wrong := contradict(prompt, kind, config, draw):
                            accepted[name, kind][0] += verdict(wrong, things).right
                            accepted[name, kind][1] += 1
            first, *others = verdicts.values()
            same = [all(v.right == w.right for w in rest) for v, *rest in zip(first, *others, strict=True)]
            agreed[level] += np.mean(same) / len(categories)

    print(
        f"level {args.level}, {args.scenes} fresh scenes a category, percent right; "
        f"{read / seconds:.0f} pictures a second of CPU time\n"
    )
    print("| judge | damage | " + " | ".join(categories) + " |\n|" + "---|" * (len(categories) + 2))
    for name in judges:
        for level in LEVELS:
            row = " | ".join(f"{100 * right[name, level, c]:.1f}" for c in categories)
            print(f"| {name} | {level} | {row} |")
    print("\n| judge | " + " | ".join(f"wrong {kind} accepted" for kind in WRONG) + " |\n|" + "---|" * (len(WRONG) + 1))
    for name in judges:
        row = " | ".join(f"{100 * a / n:.2f} % of {n}" if n else "-" for a, n in (accepted[name, k] for k in WRONG))
        print(f"| {name} | {row} |")
    if len(judges) > 1:
        print("\njudges agree: " + ", ".join(f"{level} {100 * share:.1f} %" for level, share in agreed.items()))
    for name, counts in reasons.items():
        common = sorted(counts.items(), key=lambda item: -item[1])[:8]
        print(f"judge {name} on clean scenes, most frequent faults: " + "; ".join(f"{why} ({n})" for why, n in common))


if __name__ == "__main__":
    main()
