"""The script that goes into deployment folders; it stands alone and imports nothing of ours."""
