"""The page that shows a swarm in a browser.

What it shows comes from `node/watching`; `pages` draws it with NiceGUI, and is imported when a visitor opens the page for the first time.
"""
