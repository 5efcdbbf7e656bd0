"""Thin command lines: parse, call, print; no logic."""
