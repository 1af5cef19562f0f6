"""Who is who: wallets, signatures on messages and requests, and the rules about whose key is trusted. No torch.

bittensor takes half a second to import, so it is imported inside the functions that need it, never at the top.
"""
