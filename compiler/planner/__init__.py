"""Planners: one signature, `Problem -> Plan` (see stic.compiler.plan)."""
