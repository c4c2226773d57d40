"""One Lightning module per kind of model."""

from recipes.harness.task import Task
from recipes.recipe import AdversarialRecipe, CodecRecipe, Recipe, SpeakerRecipe
from recipes.tasks.adversarial import AdversarialCodecTask
from recipes.tasks.codec import CodecTask
from recipes.tasks.speaker import SpeakerTask


def make_task(recipe: Recipe) -> Task:
    """Return the task that a recipe is for."""
    if isinstance(recipe, AdversarialRecipe):
        return AdversarialCodecTask(recipe)
    if isinstance(recipe, SpeakerRecipe):
        return SpeakerTask(recipe)
    assert isinstance(recipe, CodecRecipe)
    return CodecTask(recipe)
