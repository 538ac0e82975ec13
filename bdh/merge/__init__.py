"""Merging: several models into one, declared in a recipe, planned before a weight is read, written with its lineage."""

from .make import LINEAGE as LINEAGE
from .make import Merged as Merged
from .make import merge as merge
from .make import write as write
from .plan import Plan as Plan
from .plan import make_plan as make_plan
from .recipe import METHODS as METHODS
from .recipe import Recipe as Recipe
from .recipe import read_recipe as read_recipe
