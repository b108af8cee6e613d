export {type Cloud, type CloudStatus, startCloud, trustKept} from './cloud.ts';
export {type CloudName, detectCloud, readDmi} from './detect.ts';
export {loadKept, saveKept} from './kept.ts';
export {type CloudFacts, fetchFacts, platformOf} from './providers.ts';
export {askAt} from './request.ts';
