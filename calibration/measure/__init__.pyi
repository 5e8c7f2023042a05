from .collectives import measure_ranks as measure_ranks
from .run import chosen_groups as chosen_groups
from .run import listing as listing
from .run import measure_groups as measure_groups
