"""One Lightning module per kind of model."""

from recipes.harness.task import Task
from recipes.recipe import AdversarialRecipe, Recipe
from recipes.tasks.adversarial import AdversarialCodecTask
from recipes.tasks.codec import CodecTask


def make_task(recipe: Recipe) -> Task:
    """Return the task that a recipe is for."""
    if isinstance(recipe, AdversarialRecipe):
        return AdversarialCodecTask(recipe)
    return CodecTask(recipe)
