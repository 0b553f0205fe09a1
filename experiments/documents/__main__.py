"""Write the numbers of README.md, the manual and the results from the files in experiments/results.

    python -m experiments.documents

Only what stands between `<!-- from results: NAME -->` and `<!-- end -->` changes.
"""

from collections.abc import Mapping

from experiments.documents import claims, codec, conditioned, deep, digits, speed, study, targets
from experiments.documents.blocks import ROOT, Writer, fill

DOCUMENTS = ("README.md", "experiments/README.md", "experiments/results/README.md")
WRITERS: Mapping[str, Writer] = {
    "claims": claims.claims,
    "applications": claims.applications,
    "claims_separate": claims.claims_separate,
    "applications_separate": claims.applications_separate,
    "objectives_separate": claims.objectives_separate,
    "recipe": claims.recipe,
    "study_guidance": study.guidance,
    "study_answers": study.answers,
    "study_reference": study.reference,
    "study_speed": study.speed,
    "study_target_map": study.target_map,
    "digits_betas": digits.betas,
    "digits_elbo": digits.elbo,
    "digits_spread": digits.spread,
    "target_runs": targets.runs,
    "target_missed": targets.missed,
    "target_map": targets.digits_map,
    "target_frontier": targets.frontier,
    "deep_targets": deep.target_groups,
    "deep_grid": deep.grid,
    "mnist": deep.mnist,
    "depth": deep.depth,
    "conditioned_excess": conditioned.excess,
    "conditioned_answering": conditioned.answering,
    "conditioned_cost": conditioned.cost,
    "codec_files": codec.files,
    "codec_grid": codec.grid,
    "codec_speed": codec.speed,
    "benchmark": speed.benchmark,
    "scaling": speed.scaling,
    "streaming": speed.streaming,
    "memory": speed.memory,
}


def main() -> None:
    """Rewrites the documents that are not current."""
    for name in DOCUMENTS:
        file = ROOT / name
        text = file.read_text(encoding="utf-8")
        new = fill(text, WRITERS)
        if new != text:
            file.write_text(new, encoding="utf-8")
        print(f"{name}: {'written' if new != text else 'current'}")


if __name__ == "__main__":
    main()
