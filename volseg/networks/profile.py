"""placeholder"""
Profile = StageProfile = compare_blocks = profile_network = None
