"""Sharing a model by Hugging Face's conventions: weights, a description, and a card that is written from its run."""

from __future__ import annotations

import json
import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vpgfast import __version__
from vpgfast.checkpoint import save_checkpoint
from vpgfast.errors import UserError
from vpgfast.files import SHARED_CONFIG_FILE, SHARED_MODEL_FILE, output_folder, write_file

if TYPE_CHECKING:
    from vpgfast.api.grounder import Grounder

_PAPERS = {
    "seqpan": "SeqPAN (Zhang et al., Findings of ACL-IJCNLP 2021)",
    "marn": "MARN (Song et al., 2020)",
    "wsra": "WSRA (Fang et al.)",
    "siamgtr": "SiamGTR (Tan et al.)",
    "dmr_jrg": "DMR-JRG (joint retrieval and grounding of paragraphs)",
    "plain_alignment": "plain alignment of sentences and clips, without context",
    "similarity": "similarity of an encoder's vectors, without training",
}


def save(model: Grounder, folder: Path, licence: str, name: str | None) -> Path:
    """See :meth:`vpgfast.api.Grounder.save_pretrained`."""
    if not re.fullmatch(r"[\w.+-]+", licence):
        raise UserError(f"license {licence!r}: give a name as Hugging Face has it, such as mit or apache-2.0")
    output_folder(folder, "folder")
    save_checkpoint(folder / SHARED_MODEL_FILE, model.checkpoint)
    content = json.dumps(description(model), indent=2, ensure_ascii=False) + "\n"
    write_file(folder / SHARED_CONFIG_FILE, content.encode())
    write_file(folder / "README.md", card(model, licence, name or str(folder)).encode())
    return folder


def push(model: Grounder, name: str, licence: str, private: bool, token: str | None) -> str:
    """See :meth:`vpgfast.api.Grounder.push_to_hub`."""
    try:
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError
    except ImportError:
        raise UserError("to share a model on Hugging Face's hub, pip install huggingface_hub") from None
    with tempfile.TemporaryDirectory() as folder:
        save(model, Path(folder), licence, name)
        try:
            api = HfApi(token=token)
            address = str(api.create_repo(name, private=private, exist_ok=True))
            api.upload_folder(folder_path=folder, repo_id=name, commit_message=f"vpgfast {__version__}")
        except (HfHubHTTPError, HFValidationError, OSError) as error:
            raise UserError(f"{name}: the hub does not take it ({' '.join(str(error).split())})") from None
    return address


def description(model: Grounder) -> dict[str, Any]:
    """``config.json``: what the model is, to be read by people and by other tools; loading needs the weights alone."""
    checkpoint = model.checkpoint
    identity = checkpoint.encoder
    return {
        "library_name": "vpgfast",
        "vpgfast_version": __version__,
        "method": checkpoint.method,
        "corpus": checkpoint.corpus,
        "settings": checkpoint.settings,
        "features": {"width": checkpoint.feature_dim, "source": checkpoint.feature_source},
        "encoder": None if identity is None else json.loads(identity.to_json()),
        "vocabulary": {"words": len(checkpoint.word_vectors.words), "source": checkpoint.word_vectors.source},
        "epoch": checkpoint.epoch,
        "results": model.results,
    }


def card(model: Grounder, licence: str, name: str) -> str:
    """The model's card: YAML on top for the hub, then text."""
    checkpoint, results = model.checkpoint, model.results
    identity = checkpoint.encoder
    lines = [
        "---",
        "library_name: vpgfast",
        f"license: {licence}",
        "tags:",
        *(f"- {tag}" for tag in ("video-grounding", "temporal-grounding", "moment-retrieval", checkpoint.method)),
        "---",
        "",
        f"# {checkpoint.method} on {checkpoint.corpus}",
        "",
        f"When does each sentence happen in a video? {_PAPERS.get(checkpoint.method, checkpoint.method)}, by "
        f"[vpgfast](https://pypi.org/project/vpgfast/) {__version__}.",
        "",
        "## How to use it",
        "",
        "```python",
        "import vpgfast",
        "",
        f"model = vpgfast.load({name!r})",
        'found = model.ground("clip.mp4", ["A man opens a door.", "He sits down."])',
        "print(found)",
        "```",
        "",
        "## What it is",
        "",
        f"- **Method**: {checkpoint.method}, {checkpoint.epoch} epochs. All settings are in `{SHARED_CONFIG_FILE}`.",
        f"- **Data**: {checkpoint.corpus}.",
        f"- **Features**: {checkpoint.feature_source}, width {checkpoint.feature_dim}.",
    ]
    if identity is None:
        lines.append("- **Encoder**: not known; features of the same kind have to be given.")
    else:
        weights = f", SHA-256 of its weights `{identity.sha256}`" if identity.sha256 else ""
        lines.append(f"- **Encoder**: `{identity.spec}`{weights}. Its weights are not part of this model.")
    lines.append(f"- **Words**: {len(checkpoint.word_vectors.words)}, vectors: {checkpoint.word_vectors.source}.")
    return "\n".join([*lines, "", "## What was measured", "", *_measured(results), ""])


def _measured(results: dict[str, Any] | None) -> list[str]:
    """The table of a run: the method beside the baselines and with swapped sentences."""
    try:
        assert results is not None
        method, metrics = str(results["method"]), results["metrics"]
        rows = {method: metrics, **results["baselines"]}
        if results.get("control"):
            rows[f"{method}, sentences swapped"] = results["control"]
        cells = [[f"{100 * row[key]:.1f}" if key in row else "-" for key in metrics] for row in rows.values()]
        title = f"{results['corpus']}, {results['split']} split, in %, seed {results['seed']}."
    except (AssertionError, KeyError, TypeError):
        return ["Nothing is known."]
    table = [f"| | {' | '.join(metrics)} |", "|---" * (len(metrics) + 1) + "|"]
    table += [f"| {label} | {' | '.join(row)} |" for label, row in zip(rows, cells, strict=True)]
    note = (
        "The other rows are what watching nothing earns (random spans, an even split of the video, the usual place, "
        "the whole video, the best single span), and the model asked with another video's sentences. What the model "
        "has learned to see and read is what it is better by."
    )
    return [title, "", *table, "", note]
