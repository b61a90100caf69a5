"""A model in another program: llama.cpp, LMDeploy, and whether it is asked in the same tokens."""
