"""The vLLM engine behind the contract of app/messages.py: what is asked of it, and what its tokens mean.

Only `engine.py` imports vLLM, inside of functions: gateways, the head and `mindfu check` do without it.
"""
