"""Similarity registration by Gauss-Newton optimisation of a similarity metric, from the best of several starts."""

from atlasseg.methods import method
from atlasseg.registration._linear import linear_registration

register = method("registration", name="similarity", summary=__doc__)(
    linear_registration("similarity", "a similarity transform (7 parameters)", module=__name__)
)
