"""Thin command lines: parse, call, print; no logic.

A script takes its own folder from `sys.path`, because tools/ holds a pretrain.py that would hide the package, and puts
the checkout there instead; in a wheel the packages are found without.
"""
