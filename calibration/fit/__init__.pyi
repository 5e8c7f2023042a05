from .errors import Errors as Errors
from .errors import by_numbers as by_numbers
from .inputs import fit_inputs as fit_inputs
from .magicdec import bare as bare
from .magicdec import fit_rows as fit_rows
from .report import FitReport as FitReport
from .report import write_files as write_files
