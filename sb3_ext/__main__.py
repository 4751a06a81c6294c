from sb3_ext.zoo.cli import main

if __name__ == "__main__":
    main()
