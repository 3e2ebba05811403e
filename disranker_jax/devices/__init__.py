"""The mesh and its layout rules, several processes, memory."""
