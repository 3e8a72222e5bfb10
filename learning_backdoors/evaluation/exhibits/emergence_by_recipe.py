"""emergence_by_recipe.csv: the median crossing step over the runs of each recipe."""

from learning_backdoors.evaluation import crossings

table = crossings.of_recipes
