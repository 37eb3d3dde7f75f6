"""Models: adapters, universal state dicts, exports. Public names stand in the package `lit_wsl` itself."""
