from .errors import Errors as Errors
from .errors import by_numbers as by_numbers
from .inputs import fit_inputs as fit_inputs
from .inputs import fit_public_tables as fit_public_tables
from .magicdec import bare as bare
from .magicdec import fit_published_engine as fit_published_engine
from .magicdec import fit_rows as fit_rows
from .report import FitReport as FitReport
