"""Publish a converted model on the Hugging Face hub."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from torch import nn

from ilmconvert.errors import HubError, one_line
from ilmconvert.export.hub.folder import CARD, CONFIG, WEIGHTS, save_pretrained


def push_to_hub(
    model: nn.Module,
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    commit_message: str = "Add model",
    create_pr: bool = False,
    source: nn.Module | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> str:
    """Publish a converted timm model on the Hugging Face hub; then ``timm.create_model("hf-hub:ORG/NAME")`` loads it.

    The files are those of :func:`ilmconvert.save_pretrained`. The repository is made if it isn't there. A model card
    that is there stays, since somebody may have written in it.

    Args:
        model: a converted model that timm built.
        repo_id: ``ORG/NAME``.
        private: of a new repository; None for what the organisation has set.
        token: of the hub; by default the one of ``hf auth login`` or ``HF_TOKEN``.
        revision: the branch, which must exist.
        commit_message: of the one commit.
        create_pr: propose the commit as a pull request instead.
        source, provenance: see :func:`ilmconvert.save_pretrained`.

    Returns:
        The address of the commit.

    Raises:
        CheckpointError: the model can't be written; nothing was sent.
        HubError: the hub can't be reached, or refuses.
    """
    with tempfile.TemporaryDirectory() as place:
        folder = save_pretrained(
            model, Path(place) / "model", source=source, provenance=provenance, name=f"hf-hub:{repo_id}"
        )
        return upload(
            folder,
            repo_id,
            private=private,
            token=token,
            revision=revision,
            commit_message=commit_message,
            create_pr=create_pr,
        )


def upload(
    folder: Path,
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    commit_message: str = "Add model",
    create_pr: bool = False,
) -> str:
    """Send a folder that :func:`ilmconvert.save_pretrained` wrote; see :func:`push_to_hub`."""
    from ilmconvert._constants import __version__

    try:
        api = HfApi(token=token, library_name="ilmconvert", library_version=__version__)
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        commit = api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            revision=revision,
            commit_message=commit_message,
            create_pr=create_pr,
            allow_patterns=[WEIGHTS, CONFIG, *([] if api.file_exists(repo_id, CARD, revision=revision) else [CARD])],
        )
    except Exception as error:  # the client's, the network's and the operating system's
        reason = one_line(error)[:300] or type(error).__name__
        cure = "check the name, the network and the login (hf auth login, or HF_TOKEN)"
        raise HubError(f"can't publish {repo_id}: {reason}; {cure}") from error
    return str(commit.commit_url)
