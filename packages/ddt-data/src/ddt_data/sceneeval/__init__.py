"""SceneEval: fixed prompts, the judge that looks at drawn pictures, and its verdicts."""
