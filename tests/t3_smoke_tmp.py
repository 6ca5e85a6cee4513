def test_smoke(door, far):
    door.write("a", b"hello")
    assert door.read("a") == b"hello"
    door.mkdir("d")
    door.rename("a", "d/b")
    assert door.listdir("d") == ["b"]
    door.sync()
    assert far.read("d/b") == b"hello"
    door.unlink("d/b")
    door.rmdir("d")
    door.sync()
    assert far.names() == set()
def test_mount(mount, far):
    mount.run("echo hi > mnt/x; cat mnt/x")
    mount.sync()
    assert far.read("x") == b"hi\n"
