"""The verifier that runs on the board: the standard library and numpy alone, in the syntax of Python 3.8.

``qcheck.tasks.bundle`` packs this folder into a bundle as ``verify.pyz``, and ``qcheck verify`` runs it here. Modules
import each other relatively and nothing else of qcheck. What both sides compute (the adapter's effect, the precision
that an engine's inspector tells) stands here once, and the host imports it.
"""
