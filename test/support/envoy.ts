export {ensureEnvoy} from '../../scripts/fetch-envoy.ts';
