"""Registers the embedding model of `mail_search`: all-MiniLM-L6-v2 as its makers trained it.

Nothing is learned here. The folder says how tokens are pooled and that embeddings have the length 1, so that a product
of two is the cosine of their angle.
"""

from batch_platform.core.models.registry import Registry
from batch_platform.core.models.signature import InputColumn, ModelSignature
from batch_platform.core.models.versions import RegisteredVersion
from batch_platform.core.spec import PipelineSpec
from batch_platform.core.training import alias_of_new, unreviewed
from batch_platform.settings import Settings, project_root

TEXT = "text"
SIGNATURE = ModelSignature(
    inputs=(InputColumn(TEXT, "string"),),
    task="embedding",
    text_column=TEXT,
    max_tokens=128,
    pooling="mean",
    normalize=True,
    output_size=384,
)


def train(spec: PipelineSpec, settings: Settings) -> RegisteredVersion:
    """Register the model and point the pipeline's alias to it.

    Raises:
        ModelError: the folder is not there, or no such model.
    """
    card = {
        "intended_use": "Find e-mails by meaning, in English. Not for anything that is decided about people.",
        "training_data": "None here: all-MiniLM-L6-v2 (Apache-2.0) as published, trained by its makers "
        "on a billion pairs of sentences.",
        "metrics": {"measured here": "nothing"},
        "owner": spec.owners[0] if spec.owners else "nobody named",
        **unreviewed(),
    }
    return Registry(settings.root).register(
        spec.model.name,
        project_root() / ".demo_data" / "minilm",
        "transformers",
        SIGNATURE,
        card=card,
        alias=alias_of_new(spec, settings),
        by="training",
        why="as published",
    )
