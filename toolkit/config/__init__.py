"""What a user may set: every setting with its unit, default and range, and how flags and YAML become settings.

A new setting is one field of a section; its flag, YAML key, help text and error messages follow from it. This room only
parses and checks values against each other. Never: torch, files of a run, or decisions that need data or a device.
"""
