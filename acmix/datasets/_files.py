"""Folders and files of data sets, by the rules that the service, too, goes by."""

from acmix.data_root import folder_below, leads_below

__all__ = ["folder_below", "leads_below"]
