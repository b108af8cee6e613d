import packageJson from '../package.json' with {type: 'json'};

/** The release, from package.json; esbuild puts it into the bundle. */
export const version: string = packageJson.version;
